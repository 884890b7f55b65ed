"""What people run: one module or room a command, each with a COMMAND.

Everything that only people need is here: texts, drawings, checks, snapshots. Changes to
the machine are in events. May import every room but hook and cli.
"""
