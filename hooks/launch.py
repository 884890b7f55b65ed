"""What the gate starts: finds the package beside itself and runs the hook.

Installed as /usr/lib/vfio-console-hook/hook. Python runs isolated (-I), so the
script's own directory is not on sys.path before it is put there. This file must
work when everything else is broken: when the package cannot be loaded it prints one
sentence, because virsh shows the output.
"""

from __future__ import annotations

import gc
import os
import sys

# libvirtd waits for this process, which lives for a few milliseconds: collecting
# garbage while modules load, and tidying up at the end, are a sixth of its time.
gc.disable()
# install.sh has compiled the package; a hook that writes into /usr is a surprise.
sys.dont_write_bytecode = True


def _inspect(attribute: str) -> object:
    """Load inspect when it is asked for something (PEP 562)."""
    del sys.modules["inspect"]
    import inspect

    return getattr(inspect, attribute)


if sys.flags.no_site:
    # In the events after prepare. dataclasses imports inspect and, before Python 3.13, asks it
    # for nothing as long as each class has a docstring: 4 of the 26 ms that each event takes.
    sys.modules["inspect"] = type(sys)("inspect")
    vars(sys.modules["inspect"])["__getattr__"] = _inspect

try:
    # The directory is a link, which the next install.sh replaces. Modules that are loaded
    # late come from the version that runs, and install.sh keeps a version that is open.
    here = __file__.rpartition("/")[0] or "."
    running = os.open(here, os.O_RDONLY)
    sys.path.insert(0, os.path.realpath(here))
    import vfio_console_hook  # noqa: F401  (now it is found without the path)

    # Otherwise Python would look there for each module of the standard library.
    del sys.path[0]
    from vfio_console_hook.hook import main
except Exception as error:  # a module may fail in any way when half of it is there
    sys.stderr.write(
        f"vfio-console-hook: cannot load the program: {error}; nothing was changed\n"
        "hint: install vfio-console-hook again\n"
    )
    sys.exit(1)

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
