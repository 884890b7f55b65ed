"""The changes of the machine that a step may consist of, one class each.

Each reads back what it changed: the kernel often accepts a write and does nothing
(Linux vt.c, store_bind) or less than it was asked. May import config and machine.
"""
