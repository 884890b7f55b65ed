"""The program as a process, on a machine that is a directory.

Run as `python3 -I launch.py hook DIRECTORY NAME OPERATION SUBOPERATION EXTRA` with the XML on
stdin, or as `python3 -I launch.py command WORDS...`. Does what hooks/launch.py and
hooks/command.py do, and reports its memory on descriptor 3.
"""

import gc
import os
import resource
import sys

_REPORT = 3  # the descriptor for the most memory that was taken, in KiB

gc.disable()
sys.dont_write_bytecode = True
sys.path.insert(0, __file__.rsplit("/", 3)[0])


def main() -> int:
    if sys.argv[1] == "hook":
        from vfio_console_hook import hook
        from vfio_console_hook.machine.snapshot import SnapshotHost

        return hook.main(sys.argv[3:], host=SnapshotHost(sys.argv[2]))
    from vfio_console_hook import cli

    return cli.main(sys.argv[2:])


def _peak_kib() -> int:
    """The most memory that this process or one of its children had.

    ru_maxrss of this one would be that of its parent, if that was larger (Linux
    fs/exec.c, begin_new_exec keeps it in signal->maxrss).
    """
    with open("/proc/self/status") as file:
        own = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


if __name__ == "__main__":
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(_REPORT, str(_peak_kib()).encode())
    os._exit(status)
