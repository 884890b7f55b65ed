"""What people run: one module or room a command, each with a COMMAND.

Here is everything that only people need: words, drawings, checks, snapshots. What
changes the machine is in events. May import every room but hook and cli.
"""
