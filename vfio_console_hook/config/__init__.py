"""What the administrator sets: what can be set, in which files, and what is wrong there.

Nothing here knows what a setting is for. May import machine.
"""
