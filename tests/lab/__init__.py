"""The lab: the hook under a real libvirtd on real kernels, with no GPU needed.

    tests/lab/run                    every scenario, two machines at a time
    tests/lab/run efifb-5.10 native  only these
    tests/lab/run --smoke            the few that show most in a short time
    tests/lab/run --ci --budget 30   as many as fit into 30 minutes, by priority
    tests/lab/run --matrix           each kernel of Debian's suites with each kind of console
    tests/lab/run --matrix --against the same, compared with no hook and the guides' script
    tests/lab/run --list             what there is
    tests/lab/run --build-only       fill the cache and stop
    tests/lab/run --shell 6.12       a root shell in that kernel (leave with ctrl-a x)

A QEMU plays the host under test: an emulated IOMMU, one or two emulated GPUs,
a Debian root file system with systemd and libvirtd, and a Debian kernel or one
of our own. In there the working tree is installed by install.sh, and libvirtd
starts and destroys a nested machine that owns the GPU. Nothing needs KVM.

What is downloaded or built stays in ~/.cache/vfio-console-hook-lab, keyed by
what it was made of; nothing else of this machine is changed, except that
missing tools are installed by apt-get if the lab runs as root on a Debian.

Each scenario leaves a directory: transcript.txt (every command and its answer),
serial.log, dmesg.txt, journal.txt, pictures (PNG) of the host's monitor before,
during and after each run, the plan, and the recorded machine before the first start and
after each phase of it.

The matrix leaves matrix.md, .txt and .json, the comparison against.md and so on, made
of all cells whose results are in the directory: cells that are named are run alone and
take their place in the tables. In a cell it is noted what was seen (cell.json); demanded
is only what our hook promises, and that plan and log had said what is gone.

Exit status: 0 all passed, 1 a scenario failed, 2 wrong usage or the lab could
not be built, 3 nothing failed but a machine was lost. A lost machine (QEMU died
or went silent without a kernel fault) says nothing about the program.

Where to look: scenarios.py (what is run; a new scenario is a few lines there),
trial.py (what one run does and what it demands), trials.py (the kinds of runs,
each in a module of its own), machine.py (QEMU), guest/ (what runs inside),
phases.py and predicted.py (the machine after each event of a VM, and whether the fake
machine of the other tests would be the same), share.py (how much of a start is ours),
monitors.py and pictures.py (what a screen shows, how two are compared), vm.py
(the VM that gets the GPU), matrix.py, observed.py, observation.py and tables.py (the
matrix and the comparison), trace.py (what strace saw the hook do), kernels.py,
images.py, debian.py and cache.py (what is built).
"""
