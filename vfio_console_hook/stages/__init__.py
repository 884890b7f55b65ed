"""What the host still does with a VM's GPU: one stage, a module, for each family of drivers.

A stage only looks, and yields the steps to take; taking them is for events. May
import claims, actions, config and machine.
"""
