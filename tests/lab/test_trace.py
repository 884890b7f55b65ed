"""Reading traces: lines that strace 6.1 wrote in the lab."""

from __future__ import annotations

import pytest

from . import trace

HOOK = (
    '700 execve("/etc/libvirt/hooks/qemu", ["/etc/libvirt/hooks/qemu", "gpu", "prepare", "begin",'
    ' "-"], 0x7f0c /* 6 vars */) = 0'
)
PYTHON = '701 execve("/usr/bin/python3", ["/usr/bin/python3", "-I", "x"], 0x7f0c /* 6 vars */) = 0'
OPEN_TO_READ = (
    '{pid} openat(-100 /* AT_FDCWD */</>, "/dev/fb0",'
    " 0x80100 /* O_RDONLY|O_NOCTTY|O_CLOEXEC */) = 3</dev/fb0>"
)


def changes(*lines: str) -> list[str]:
    """The changes to consoles in these lines of the hook, process 700."""
    return [call.text for call in trace.read("\n".join((HOOK, *lines))).console_changes]


@pytest.mark.parametrize(
    "line",
    [
        '700 openat(-100 /* AT_FDCWD */</>, "/sys/class/vtconsole/vtcon1/bind",'
        " 0x80001 /* O_WRONLY|O_CLOEXEC */) = 3</sys/devices/virtual/vtconsole/vtcon1/bind>",
        '700 openat(-100 /* AT_FDCWD */</>, "/dev/fb1", 0x2 /* O_RDWR */) = 3</dev/fb1>',
        '700 openat(-100 /* AT_FDCWD */</>, "/sys/class/graphics/fb0/blank",'
        " 0x1 /* O_WRONLY */) = -1 EACCES (Permission denied)",
        '700 openat(-100 /* AT_FDCWD */</>, "/sys/devices/pci0000:00/0000:02:00.0/graphics/fb0/x",'
        " 0x241 /* O_WRONLY|O_CREAT|O_TRUNC */, 0666) = 3",
        "700 openat(-100 /* AT_FDCWD */</>,"
        ' "/sys/bus/platform/drivers/efi-framebuffer/unbind", 0x1 /* O_WRONLY */) = 3',
        '700 write(3</sys/devices/virtual/vtconsole/vtcon1/bind>, "0", 1) = 1',
        "700 ioctl(3</dev/fb1>, 0x4610 /* FBIOPUT_CON2FBMAP */, 0x7f12) = 0",
        "700 ioctl(3</dev/tty1>, 0x4b3a /* KDSETMODE */, 0x1 /* KD_GRAPHICS */) = 0",
        "700 ioctl(3</dev/tty0>, 0x560b /* VT_LOCKSWITCH */) = 0",
    ],
)
def test_a_change_of_a_console_is_seen(line: str) -> None:
    assert len(changes(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        OPEN_TO_READ.format(pid=700),
        "700 ioctl(3</dev/fb0>, 0x460f /* FBIOGET_CON2FBMAP */, 0x7f12) = 0",
        "700 ioctl(3</dev/fb0>, 0x4602 /* FBIOGET_FSCREENINFO */, 0x7f12) = 0",
        "700 ioctl(0</dev/tty1>, 0x5401 /* TCGETS */, 0x7f12) = 0",
        '700 openat(-100 /* AT_FDCWD */</>, "/sys/bus/pci/devices/0000:01:00.0/driver/unbind",'
        " 0x1 /* O_WRONLY */) = 3",
        '700 openat(-100 /* AT_FDCWD */</>, "/run/vfio-console-hook/lock",'
        " 0x80042 /* O_RDWR|O_CREAT|O_CLOEXEC */, 0600) = 4",
        '700 openat(-100 /* AT_FDCWD */</>, "/sys/class/vtconsole",'
        " 0x90800 /* O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY */) = 3",
    ],
)
def test_reading_is_no_change(line: str) -> None:
    assert changes(line) == []


WRITE_BY = '{} write(3</sys/devices/virtual/vtconsole/vtcon1/bind>, "0", 1) = 1'


def test_calls_of_libvirtd_are_not_the_hooks() -> None:
    assert changes(WRITE_BY.format(600)) == []


def test_calls_of_a_child_are_the_hooks_even_before_the_fork_has_returned() -> None:
    lines = (
        "700 clone3({flags=0x4100 /* CLONE_VM|CLONE_VFORK */}, 88 <unfinished ...>",
        PYTHON,
        "701 clone(child_stack=NULL, flags=0x11 /* SIGCHLD */ <unfinished ...>",
        WRITE_BY.format(702),
        "701 <... clone resumed>, child_tidptr=0x7f) = 702",
        "700 <... clone3 resumed> => {parent_tid=[0]}, 88) = 701",
    )

    assert len(changes(*lines)) == 1


def test_a_call_in_two_parts_is_one_call() -> None:
    lines = (
        "700 ioctl(3</dev/fb1>, 0x4610 /* FBIOPUT_CON2FBMAP */ <unfinished ...>",
        "600 ioctl(9</dev/null>, 0x1) = 0",
        "700 <... ioctl resumed>, 0x7f12) = 0",
    )

    assert changes(*lines) == [
        "ioctl(3</dev/fb1>, 0x4610 /* FBIOPUT_CON2FBMAP */, 0x7f12) = 0",
    ]


def test_a_call_that_never_returned_counts() -> None:
    line = '700 write(3</sys/devices/virtual/vtconsole/vtcon1/bind>, "0", 1 <unfinished ...>'

    assert len(changes(line)) == 1


def test_the_events_are_read_from_the_calls_of_the_hook() -> None:
    seen = trace.read(HOOK + "\n" + HOOK.replace("prepare", "release") + "\n" + PYTHON)

    assert seen.events == {"prepare", "release"}
