"""What a VM holds, on disk: its claim, the steps in it, and who may work on it; and what people
learn of it later: the last events, what is lost, and notices of that.

Nothing here decides what is done to a machine. May import actions, config and
machine.
"""
