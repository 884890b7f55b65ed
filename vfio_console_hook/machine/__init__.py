"""The machine: host/ is the one door to it, and each other module reads one part of it.

A host is this machine or a snapshot of one. Nothing here decides what is done. May
import errors only.
"""
