#!/usr/bin/python3 -IXutf8
"""The command vfio-console-hook: finds the package that install.sh installed.

Installed as /usr/bin/vfio-console-hook; the package is in ../lib beside it, also
below a DESTDIR. The version that runs is kept open, as in launch.py.
"""

from __future__ import annotations

import os
import sys

sys.dont_write_bytecode = True
try:
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    here = os.path.join(prefix, "lib/vfio-console-hook")
    running = os.open(here, os.O_RDONLY)
    sys.path.insert(0, os.path.realpath(here))
    from vfio_console_hook.cli import main
except Exception as error:  # a module may fail in any way when half of it is there
    sys.exit(
        f"vfio-console-hook: cannot load the program: {error}\n"
        "hint: install vfio-console-hook again"
    )

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
