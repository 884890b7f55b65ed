"""The packages in the hands of the package managers that people use.

    tests/packages/run               every trial
    tests/packages/run apt-trixie    only this one
    tests/packages/run --quick       those of continuous integration: no distribution is upgraded
    tests/packages/run --list        what there is

Runs as root on a Debian host. Each trial gets a Debian root of its own, from Debian's mirror, with
an overlay in memory; apt, dnf5, zypper and pacman install, upgrade and remove the packages in it.
Debian has all of these programs, but the packages of one distribution only: for the others empty
packages of this test stand in for python3, lxml and PyYAML, and the Python that runs is Debian's.
So a trial says what a package manager does with our package, its scripts and its dependencies'
names, and nothing of another distribution's files.

What a trial demands: no question is asked; the hook is where libvirt finds it; an upgrade keeps the
configuration, the claim of a VM that runs and the modules of a hook that is at work; removal
is refused while there is a claim, and leaves a root as it was before.

Roots stay in the lab's cache, ~/.cache/vfio-console-hook-lab. Exit status: 0 all passed, 1 a
trial failed, 2 wrong usage or a root could not be made.

Where to look: trials.py (what is done and demanded), managers.py (one package manager each),
roots.py (the roots and what has changed in them), versions.py (the packages that are installed).
"""
