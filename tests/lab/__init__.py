"""The lab: the hook under a real libvirtd on real kernels, with no GPU needed.

    tests/lab/run                    every scenario, two machines at a time
    tests/lab/run efifb-5.10 native  only these
    tests/lab/run --smoke            a few that cover much in a short time
    tests/lab/run --ci --budget 30   as many as fit into 30 minutes, by priority
    tests/lab/run --matrix           kernels of Debian's suites with each kind of console
    tests/lab/run --matrix --against the same, compared with no hook and the guides' script
    tests/lab/run --list             list scenarios and kernels
    tests/lab/run --build-only       fill the cache and stop
    tests/lab/run --shell 6.12       a root shell in that kernel (leave with ctrl-a x)

A QEMU plays the host under test: an emulated IOMMU, one or two emulated GPUs,
a Debian root file system with systemd and libvirtd, and a Debian kernel or a build
of Debian's source with the options of another distribution. There install.sh installs
the working tree, and libvirtd starts and destroys a nested machine that owns the GPU.
KVM is not needed.

Downloads and builds stay in ~/.cache/vfio-console-hook-lab, keyed by what they were
made from. The lab changes nothing else on this machine, except that apt-get installs
missing tools if the lab runs as root on a Debian.

Each scenario leaves a directory: transcript.txt (every command and its answer),
serial.log, dmesg.txt, journal.txt, pictures (PNG) of the host's monitor before,
during and after each run, the plan, and snapshots of the machine before the first start
and after each phase of it.

The matrix leaves matrix.md, .txt and .json, the comparison leaves against.md and so on.
They cover all cells whose results are in the directory, so single cells can be run again.
A cell notes what was seen (cell.json); it demands only what our hook promises, and that
plan and log announced what is lost.

Exit status: 0 all passed, 1 a scenario failed, 2 wrong usage or the lab could
not be built, 3 nothing failed but a machine was lost. A lost machine (QEMU died
or went silent without a kernel fault) proves nothing about the program.

Where to look: scenarios.py (what is run; a new scenario is a few lines there),
trial.py (what one run does and demands), trials.py (the kinds of runs, each in a module
of its own), machine.py (QEMU), guest/ (programs that run inside), background.py (commands
that run there beside others), wrapper.py (a script around the hook), phases.py and
predicted.py (the machine after each event of a VM, compared with the fake machine of the
other tests), printed.py (the output of commands without times), share.py (the hook's part
of a start), monitors.py and pictures.py (what a screen shows, how two are compared), vm.py
(the VM that gets the GPU), matrix.py, cell.py, observation.py and tables.py (the matrix and
the comparison), trace.py (the hook's system calls by strace), retry.py (lost machines),
kernels.py, images.py, modular.py (virtqemud), debian.py and cache.py (what is built).
"""
