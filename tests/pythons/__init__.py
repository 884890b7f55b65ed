"""All tests with the Pythons that supported hosts have, each in a root of its own.

    tests/pythons/run                   with all of them
    tests/pythons/run 3.9 3.15          only with these
    tests/pythons/run 3.14 -- --sample  what stands after -- goes to pytest
    tests/pythons/run busybox           the hook and install.sh where all programs are busybox's

Runs as root on a Debian host. A root is made from the Debian release that has this Python, and
has the shells, awks and other programs of that release, too: tests of the gate run with those.
pytest, lxml and PyYAML are wheels for this Python, which this machine's pip installs into the root.
Linters are skipped: they say the same with every Python; and so are the tests that ask libvirt,
whose module is built against one libvirt.

Roots stay in the lab's cache. Exit status: 0 all tests passed with all Pythons, 1 not, 2 wrong
usage or a root could not be made.
"""
