"""Jobs on whole disks: convert, compare, measure, probe; on public names only.

Each module is imported where it is needed: a program that measures need not wait for the threads
that copy.
"""
