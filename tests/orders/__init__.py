"""VMs on a machine, and all that may happen to them, in any order that libvirt allows.

machines.py says what machines there are, state.py how one of them is at a moment, watched.py
how the program is called there, and promises.py what must hold after each call, observed without
the program's help by watch.py. world.py says what libvirt and people do, story.py lets
Hypothesis make stories of it. tests/trust/orders.py counts what came of them.
"""
