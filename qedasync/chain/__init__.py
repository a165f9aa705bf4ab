"""What changes an image's place in its chain: its backing file's name, and what it holds itself.

``rebase`` puts an image on another backing file (or on none), ``commit`` moves what an image holds
down into its backing file, ``name`` only writes a name. All of them keep one promise: the image
reads the same before, during and after, whoever is killed when; guests read and write meanwhile.
They hold ``Engine.job``, so one of them works on an image at a time.
"""
