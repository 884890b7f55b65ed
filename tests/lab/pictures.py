"""Pictures of the host's monitor: reading QEMU's, comparing two, writing PNG for people."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Two pixels are the same unless a channel differs by more than this: a driver
# may use another colour depth after it was bound again.
SAME_WITHIN = 72


@dataclass(frozen=True)
class Picture:
    """Pixels, three bytes each, row by row."""

    width: int
    height: int
    rgb: bytes

    def corner(self, width: int, height: int) -> Picture:
        """The upper left part, at most that large."""
        width, height = min(width, self.width), min(height, self.height)
        rows = (self.rgb[y * self.width * 3 :][: width * 3] for y in range(height))
        return Picture(width, height, b"".join(rows))

    def lit(self) -> float:
        """The part of the pixels that is not dark, between 0 and 1."""
        return _part(max(self.rgb[i : i + 3]) > SAME_WITHIN for i in range(0, len(self.rgb), 3))

    def difference(self, other: Picture) -> float:
        """The part of the pixels that differs visibly, between 0 and 1; 1 for unequal sizes."""
        if (self.width, self.height) != (other.width, other.height):
            return 1.0
        pairs = zip(self.rgb, other.rgb)
        far = [abs(mine - its) > SAME_WITHIN for mine, its in pairs]
        return _part(any(far[i : i + 3]) for i in range(0, len(far), 3))

    def write_png(self, path: Path) -> None:
        """Write the picture as an 8 bit RGB PNG file."""
        stride = self.width * 3
        # Each row of a PNG begins with its filter; 0 is none.
        rows = b"".join(b"\0" + self.rgb[y * stride : (y + 1) * stride] for y in range(self.height))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def read_ppm(path: Path) -> Picture:
    """The picture in a binary PPM file ("P6"), the form QEMU's screendump writes.

    Raises ValueError for anything else.
    """
    content = path.read_bytes()
    # Exactly one blank ends the header: the bytes of the first pixels may be blanks too.
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", content)
    if not header:
        raise ValueError(f"{path} is no 8 bit PPM picture")
    return Picture(int(header[1]), int(header[2]), content[header.end() :])


def _part(flags: Iterable[bool]) -> float:
    marks = list(flags)
    return sum(marks) / len(marks) if marks else 0.0


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
