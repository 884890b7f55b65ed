"""Replaces private names, and numbers that identify a machine.

The same name always gets the same replacement, so references stay intact. Text that is a
replacement already is kept: a snapshot of a snapshot is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

_UUID = re.compile(
    r"(?<![0-9a-fA-F])[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1"
    r"[0-9a-fA-F]{12}(?![0-9a-fA-F])"
)
_FAKE_UUID = "00000000-0000-4000-8000-{:012x}"
_MAC = re.compile(r"(?<![0-9a-fA-F:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![0-9a-fA-F:])")
_FAKE_MAC = "52:54:00:00:00:{:02x}"
# systemd.net-naming-scheme(7): an interface on USB has its address in its name.
_NAMED_BY_MAC = re.compile(r"(?<=\benx)[0-9a-f]{12}\b")
_FAKE_IN_NAME = "5254000000{:02x}"
# Kernel releases have three numbers; four are taken for an address.
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
_FAKE_IPV4 = "192.0.2.{}"  # for documentation, RFC 5737
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4}(?![\w:.])")
_FAKE_IPV6 = "2001:db8::{:x}"  # for documentation, RFC 3849
# Not a unit for a terminal or a user's number, such as kmsconvt@tty1.service.
_MAIL = re.compile(r"[\w.+-]+@(?!(?:tty)?\d+\.(?:service|slice)\b)(?=[\w-]+\.\w)[\w.-]+")
# Only with the usual top-level domains, or files and units would be taken for servers.
_SERVER = re.compile(
    r"(?<![\w.-])(?:[a-zA-Z0-9-]+\.)+(?:com|org|net|edu|info|lan|local|home|internal|intranet|eu|us"
    r"|uk|de|fr|nl|ch|at|pl|it|es|se)(?![\w-])(?!\.\w)"
)
_FAKE_SERVER = "server{}.example"  # RFC 2606
_PUBLIC_SERVERS = ("libvirt.org", "kernel.org", "qemu.org", "github.com", "debian.org")
# Words that mean something to the program, and reveal nothing as a name.
_COMMON = frozenset(
    "linux windows debian fedora arch ubuntu qemu kvm libvirt libvirtd virtqemud virsh vfio pci"
    " gpu vm host local localhost root system user start stop enabled name active true false all"
    " none auto services holders terminate default test service hook hooks bin usr etc home run"
    " nvidia nouveau amdgpu radeon i915 xe console firmware native".split()
)


class Replacements:
    """Replaces each of the private names that it is created with."""

    def __init__(
        self,
        vms: Iterable[str],
        users: Iterable[str],
        hosts: Iterable[str],
        files: Iterable[str] = (),
    ) -> None:
        self.vms = _numbered(vms, "vm")
        self._words = {
            **_numbered(hosts, "host"), **_numbered(users, "user"), **_numbered(files, "file"),
            **self.vms,
        }  # fmt: skip
        self._word = _any_of(self._words)
        self._numbers: dict[str, dict[str, str]] = {}

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process that replaces the same names; for root only."""
        return {"vms": self.vms, "words": self._words, "numbers": self._numbers}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Replacements:
        """What to_json() wrote. Raises KeyError, TypeError."""
        made = cls((), (), ())
        made.vms, made._words, made._numbers = value["vms"], value["words"], value["numbers"]
        made._word = _any_of(made._words)
        return made

    def vm(self, name: str) -> str:
        """The replacement for the name of a VM; "vm" for an unknown name."""
        return self.vms.get(name, "vm")

    def text(self, text: str) -> str:
        """A text that may contain names, with replacements."""
        if self._word is not None:
            text = self._word.sub(lambda match: self._words[match[0]], text)
        text = _MAIL.sub("user@host", text)
        return self.plain(self._each("server", _SERVER, _FAKE_SERVER, text))

    def plain(self, text: str) -> str:
        """A text of the kernel, which contains no names: only numbers are replaced."""
        text = _UUID.sub(self._uuid, text)
        text = self._each("mac", _MAC, _FAKE_MAC, text)
        text = self._each("mac in a name", _NAMED_BY_MAC, _FAKE_IN_NAME, text)
        text = self._each("ipv4", _IPV4, _FAKE_IPV4, text)
        return self._each("ipv6", _IPV6, _FAKE_IPV6, text)

    def _uuid(self, match: re.Match[str]) -> str:
        digits = match[0].replace("-", "").lower()
        fake = _FAKE_UUID.format(0).replace("-", "")[:16]
        if digits.startswith(fake) or not digits.strip("0"):
            return match[0]
        uuid = self._number("uuid", digits, _FAKE_UUID)
        return uuid if match[1] else uuid.replace("-", "")

    def _each(self, kind: str, pattern: re.Pattern[str], fake: str, text: str) -> str:
        already = fake.partition("{")[0]

        def other(match: re.Match[str]) -> str:
            # 127.0.0.1, 0.0.0.0 and "::" identify no machine.
            common = match[0].startswith(("127.", "0.", already)) or not match[0].strip(":01")
            common = common or match[0].endswith(_PUBLIC_SERVERS)
            return match[0] if common else self._number(kind, match[0].lower(), fake)

        return pattern.sub(other, text)

    def _number(self, kind: str, value: str, fake: str) -> str:
        known = self._numbers.setdefault(kind, {})
        return known.setdefault(value, fake.format(len(known) + 1))

    def json(self, text: str) -> str:
        """JSON, one value a line, with replacements; names of VMs below "vm" in particular."""
        return "\n".join(_json(line, self._in_json, self.text) for line in text.split("\n"))

    def _in_json(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {one: self._in_json(below, one) for one, below in value.items()}
        if isinstance(value, list):
            return [self._in_json(one) for one in value]
        if key == "vm" and value in self.vms:
            return self.vms[value]
        return self.text(value) if isinstance(value, str) else value


def _json(line: str, known: Callable[[Any], Any], otherwise: Callable[[str], str]) -> str:
    try:
        return json.dumps(known(json.loads(line))) if line else line
    except (ValueError, RecursionError):
        return otherwise(line)


def _numbered(names: Iterable[str], kind: str) -> dict[str, str]:
    """KIND1, KIND2... for each name; common words and names of that form are kept."""
    names = tuple(dict.fromkeys(names))
    kept = {one for one in names if re.fullmatch(rf"{kind}\d+", one) or one.lower() in _COMMON}
    free = (one for number in count(1) if (one := f"{kind}{number}") not in kept)
    found: dict[str, str] = {}
    for name in names:
        # A file whose name differs from its VM's only in case is a mistake that must stay visible.
        twin = next((found[one].upper() for one in found if one.lower() == name.lower()), "")
        if name in kept:
            found[name] = name
        else:
            found[name] = twin if twin and twin not in found.values() else next(free)
    return found


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds each of the words as a whole word; None without words."""
    uncommon = {one for one in words if len(one) > 2 and one.lower() not in _COMMON}
    if not uncommon:
        return None
    longest_first = sorted(uncommon, key=lambda one: (-len(one), one))
    either = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{either})(?![A-Za-z0-9])")
