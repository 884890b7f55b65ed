"""What is in the way of a VM that gets a GPU: one module a family of drivers.

A stage only looks, and yields the steps to take; taking them is for events. May
import claims, actions, config and machine.
"""
