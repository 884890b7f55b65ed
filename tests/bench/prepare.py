"""prepare of a VM with one GPU on a recorded machine, started as the gate starts it.

Run as `python3 -I prepare.py ROOT NAME prepare begin -`, with the XML on stdin. As
small as the installed launcher: what is in here is compiled anew in every run.
"""

import sys

sys.path.insert(0, __file__.rsplit("/", 3)[0])

from tests.bench.pretending import main  # noqa: E402  (the path has to be there first)

sys.exit(main(sys.argv[1], sys.argv[2:]))
