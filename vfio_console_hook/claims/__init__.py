"""What a VM holds, on disk: its claim, the steps in it, and who may work on it.

Nothing here decides what is done to a machine. May import actions, config and
machine.
"""
