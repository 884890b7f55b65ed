"""The machine: the one door to it, and what is there, read and never decided about.

A host may be this machine or a snapshot of one. May import errors only.
"""
