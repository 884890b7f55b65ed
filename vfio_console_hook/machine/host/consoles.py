"""Framebuffers and virtual consoles of the machine, by ioctl."""

from __future__ import annotations

import errno
import os

from ...errors import HostError
from .files import Files

CONSOLES = range(1, 64)
"""The virtual consoles: MAX_NR_CONSOLES is 63 (Linux include/uapi/linux/vt.h)."""

# ioctl numbers: Linux include/uapi/linux/fb.h, kd.h and vt.h.
FBIOGET_FSCREENINFO = 0x4602
FBIOGET_CON2FBMAP = 0x460F
_FBIOPUT_CON2FBMAP = 0x4610
KDSETMODE = 0x4B3A
KDGETMODE = 0x4B3B
VT_LOCKSWITCH = 0x560B
VT_UNLOCKSWITCH = 0x560C
_KD_TEXT = 0
_KD_GRAPHICS = 1

# con2fb_map[] holds -1 for a console without framebuffer; FBIOGET_CON2FBMAP
# gives it back in an unsigned field (Linux drivers/video/fbdev/core/fbcon.c).
_NO_FRAMEBUFFER = 0xFFFFFFFF


class Consoles(Files):
    """The framebuffers and virtual consoles of the machine."""

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        """(start, size in bytes) of a framebuffer's memory as its driver reports it.

        start is 0 for DRM drivers (FBINFO_HIDE_SMEM_START). None without /dev/fbN.
        """
        raw = bytearray(80)
        if not self._ioctl(f"dev/{fb}", FBIOGET_FSCREENINFO, raw):
            return None
        # struct fb_fix_screeninfo: char id[16]; unsigned long smem_start; u32 smem_len
        return int.from_bytes(raw[16:24], "little"), int.from_bytes(raw[24:28], "little")

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        """The framebuffer that each of the 63 consoles is mapped to, or None for one without.

        fb is any framebuffer, through which the ioctl goes. None without /dev/fbN.
        """
        indices = []
        for console in CONSOLES:
            raw = bytearray(console.to_bytes(4, "little") + bytes(4))
            if not self._ioctl(f"dev/{fb}", FBIOGET_CON2FBMAP, raw):
                return None
            indices.append(int.from_bytes(raw[4:], "little"))
        return tuple(None if index == _NO_FRAMEBUFFER else index for index in indices)

    def map_console(self, fb: str, console: int, index: int) -> None:
        """Map a console (1 to 63) to framebuffer index, by an ioctl on fb. Raises HostError."""
        raw = bytearray(console.to_bytes(4, "little") + index.to_bytes(4, "little"))
        if not self._ioctl(f"dev/{fb}", _FBIOPUT_CON2FBMAP, raw):
            raise HostError(f"cannot map console {console}: no /dev/{fb}", path=f"/dev/{fb}")

    def text_mode(self, tty: str) -> bool:
        """Whether the kernel draws text on this virtual terminal (KD_TEXT)."""
        raw = bytearray(8)
        self._ioctl(f"dev/{tty}", KDGETMODE, raw)
        return raw[0] == _KD_TEXT

    def set_text_mode(self, tty: str, text: bool) -> None:
        """Make the kernel draw text on this virtual terminal, or stop. Raises HostError."""
        self._ioctl(f"dev/{tty}", KDSETMODE, _KD_TEXT if text else _KD_GRAPHICS)

    def show_text(self, tty: str, text: str) -> None:
        """Write text to a virtual terminal, without a wait for one that is stopped.

        Raises HostError.
        """
        try:
            # As in _ioctl(); a terminal that Ctrl-S has stopped takes no text.
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(self.path(f"dev/{tty}"), flags)
            try:
                os.write(handle, text.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise HostError.of("write to", f"/dev/{tty}", error) from error

    def lock_consoles(self, locked: bool) -> None:
        """Forbid or allow switching between virtual terminals. Raises HostError."""
        self._ioctl("dev/tty0", VT_LOCKSWITCH if locked else VT_UNLOCKSWITCH, 0)

    def _ioctl(self, path: str, request: int, argument: bytearray | int) -> bool:
        """Run one ioctl; False when the device is not there. Raises HostError."""
        import fcntl  # only few machines need it

        try:
            # O_RDONLY is enough: fb_ioctl and vt_ioctl check capabilities, not the mode.
            # Without O_NOCTTY a console would become our controlling terminal.
            handle = os.open(self.path(path), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(handle, request, argument)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                return False
            raise HostError.of(f"ask (ioctl {request:#x})", f"/{path}", error) from error
        return True
