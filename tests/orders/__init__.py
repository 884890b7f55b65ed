"""VMs on a machine, and all that may happen to them, in any order that libvirt allows.

machines.py says what machines there are, world.py what happens on one of them and how the
program is called, watch.py what must hold meanwhile, story.py lets Hypothesis tell stories
of it. tests/trust/orders.py counts what came of them.
"""
