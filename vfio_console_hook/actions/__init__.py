"""The changes of the machine that a step may consist of, one class each.

Each looks again after it acted: the kernel often accepts a write and does nothing
(Linux vt.c, store_bind) or less than was asked. May import config and machine.
"""
