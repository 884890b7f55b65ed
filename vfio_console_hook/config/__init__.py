"""The configuration: its keys, its files, and the mistakes in them.

Nothing here knows what a setting is for. May import machine.
"""
