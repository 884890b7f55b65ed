"""What happens on each event of a VM: prepare, start, started, reconnect and release.

Here an event becomes a claim and steps; which steps, is decided in stages. May
import stages, claims, actions, config and machine.
"""
