"""prepare of a VM with one GPU on a recorded machine, started as the gate starts it.

Run as `python3 -I prepare.py ROOT NAME prepare begin -`, with the XML on stdin. It
does what hooks/launch.py does, and is as small: a script is compiled in every run.
"""

import gc
import os
import sys

gc.disable()
sys.path.insert(0, __file__.rsplit("/", 3)[0])

from tests.bench.pretending import main  # noqa: E402  (the path has to be there first)

status = main(sys.argv[1], sys.argv[2:])
sys.stderr.flush()
os._exit(status)
