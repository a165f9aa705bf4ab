"""An open image in motion: the only place where the format and the storage meet.

A request falls through in one direction: :mod:`core` counts it in, :mod:`request` or :mod:`write`
walks its runs, :mod:`tables` says what each run is, :mod:`alloc_queue` gathers what needs clusters
into groups, :mod:`commit` plans and writes a group. Everything runs on one event loop, so the code
between two awaits is atomic; the one lock there is, :attr:`AllocQueue.turn`, holds the turn of
whoever changes metadata.
"""
