"""Removes private data from the entries of a machine.

MASKS lists the rule for each path that plan and doctor read. Other files keep their text,
but known names, UUIDs, MAC and IP addresses are replaced in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ... import domain
from ...errors import HookError
from ...machine import kernel
from ...machine.snapshot import Entry
from ..doctor import hook_scripts, misspelt
from ..doctor.denials import DAEMON_DOMAINS, HOOK_DOMAINS
from . import domain_outline
from .replacements import Replacements

MASKED = "# ..."
"""Replaces a private line, so that the lines after it keep their numbers."""

_XML_OF_A_USER = re.compile(r"home/[^/]+/\.config/libvirt/qemu/(?:autostart/)?(.+)\.xml")
_OF_A_VM = re.compile(
    r"(?:libvirt/\d+/name|etc/vfio-console-hook/(?:vms/)?(.+)\.ya?ml|run/libvirt/qemu/(.+)\.pid"
    rf"|etc/libvirt/qemu/(.+)\.xml|{_XML_OF_A_USER.pattern})"
)
# Entries that are not files of the machine, and files of this program.
_NOT_PRIVATE = (
    "libvirt/", "stat/", "label/", "refused/", "ran/", "ioctl/", "recorded/",
    "usr/lib/vfio-console-hook/",
)  # fmt: skip
_XML = re.compile(r"libvirt/\d+/(?:xml|live)|(?:etc/libvirt/qemu|home|root)/.*\.xml")
_VIRTUAL_INTERFACE = re.compile(
    r"sys/class/net/[^/]+ .*/devices/virtual/.*|sys/devices/virtual/net/.*", re.DOTALL
)
_HOME = re.compile(r"home/([^/]+)")
_IS_UUID = re.compile(r"(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")


def vm_names(entries: Iterable[Entry]) -> Iterator[str]:
    """The names of VMs in libvirt, in paths and in our own files."""
    for entry in entries:
        match = _OF_A_VM.fullmatch(_plain_path(entry.path))
        if match is not None:
            text = next((one for one in match.groups() if one), None)
            name = _decoded(entry.content).strip() if text is None else text
            if name and name != "default" and not _IS_UUID.fullmatch(name):
                yield name
        if entry.path.startswith(("run/vfio-console-hook", "var/lib/vfio-console-hook")):
            found = re.findall(r'"vm": ("(?:[^"\\]|\\.)*")', _decoded(entry.content))
            # A claim that was taken by hand is named by its addresses.
            yield from (name for one in found if (name := _unquoted(one)) and ":" not in name)


def _unquoted(text: str) -> str:
    """The value of a JSON string; "" when it is not valid."""
    import json

    try:
        return str(json.loads(text))
    except ValueError:
        return ""


def user_names(entries: Iterable[Entry], passwd: str) -> Iterator[str]:
    """The users of this machine: with a home, or a uid from UID_MIN on (login.defs)."""
    for line in passwd.splitlines():
        name, _, uid, *_ = [*line.split(":"), "", "", ""]
        if re.fullmatch("[0-9]{4,5}", uid) and 1000 <= int(uid) < 60000:
            yield name
    for entry in entries:
        match = _HOME.match(_plain_path(entry.path))
        if match is not None:
            yield match[1]
        if re.fullmatch(r"run/systemd/users/\d{4,}", entry.path):  # also of who is not in passwd
            yield from re.findall(r"^NAME=(.+)$", _decoded(entry.content), re.MULTILINE)


def rom_files(entries: Iterable[Entry]) -> Iterator[str]:
    """The names of the ROM files of VMs; their folders stay as they are, but for users."""
    for entry in entries:
        if _XML.fullmatch(entry.path):
            try:
                found = domain.hostdevs(entry.content)
            except HookError:
                continue  # nothing of it will be in the snapshot
            yield from (name for one in found if (name := one.rom.rpartition("/")[2]))


def redacted(entries: Iterable[Entry], names: Replacements) -> Iterator[Entry]:
    """The same entries without private data."""
    for entry in entries:
        if _VIRTUAL_INTERFACE.fullmatch(f"{entry.path} {_decoded(entry.content)}"):
            continue  # bridges and tunnels have names of people; no PCI device has them
        path = _path(entry.path, names)
        if entry.kind == "d":
            yield Entry("d", path)
        elif entry.kind == "l":
            yield Entry("l", path, _encoded(_target(entry, names)))
        else:
            yield Entry("f", path, _encoded(_content(entry, names)))


def _plain_path(path: str) -> str:
    """The path that an entry is about, such as PATH for "stat/PATH"."""
    kind, _, rest = path.partition("/")
    path = rest if kind in ("stat", "label", "refused") else path
    return path[: -len("/.itself")] if path.endswith("/.itself") else path


def _path(path: str, names: Replacements) -> str:
    plain = _plain_path(path)
    if plain.startswith(("sys/", "proc/")):
        return names.plain(path)
    match = _OF_A_VM.fullmatch(plain)
    name = next((one for one in match.groups() if one), "") if match else ""
    if name in names.vms:
        before, _, after = path.rpartition(name)
        return names.text(before) + names.vm(name) + after
    link, mark, name = path.partition("/by-name/=")
    if mark:
        return f"{link}{mark}{names.vm(name)}"
    return names.text(path)


def _target(entry: Entry, names: Replacements) -> str:
    target = _decoded(entry.content)
    of_kernel = entry.path.startswith(("sys/", "proc/"))
    return names.plain(target) if of_kernel else names.text(target)


def _content(entry: Entry, names: Replacements) -> str:
    for pattern, mask in MASKS:
        if pattern.fullmatch(entry.path):
            return mask(_decoded(entry.content), names)
    text = _decoded(entry.content)
    if entry.path.startswith(("sys/", "proc/")):
        return names.plain(text)
    if entry.path.startswith(_NOT_PRIVATE):
        return names.text(text)
    # Hooks and configuration files can be anywhere, behind a link.
    return _script(text, names) if text.startswith("#!") or "\0" in text else _settings(text, names)


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# -- the masks


def _first_bytes(text: str, names: Replacements) -> str:
    return _decoded(_encoded(text)[:64])


def _masked(text: str, names: Replacements) -> str:
    return "masked\n" if text else text


def _only(pattern: str) -> Callable[[str, Replacements], str]:
    """Only the lines that contain the pattern."""
    wanted = re.compile(pattern)

    def mask(text: str, names: Replacements) -> str:
        return names.text("".join(f"{one}\n" for one in text.splitlines() if wanted.search(one)))

    return mask


def _cgroup(text: str, names: Replacements) -> str:
    """systemd-machined calls a VM machine-qemu\\x2dNUMBER\\x2dNAME.scope."""
    scope = re.compile(r"(machine-qemu\\x2d\d+\\x2d)(.+?)(\.scope)")

    def other(match: re.Match[str]) -> str:
        name = re.sub(r"\\x([0-9a-f]{2})", lambda one: chr(int(one[1], 16)), match[2])
        return f"{match[1]}{names.vm(name)}{match[3]}"

    return names.text(scope.sub(other, text))


def _outline(text: str, names: Replacements) -> str:
    return names.text(domain_outline.outline(text, names.vm)) if text.strip() else ""


def _settings(text: str, names: Replacements) -> str:
    """YAML and similar files without their comments; every line keeps its number."""
    lines = [
        re.sub(r"#.*", MASKED, line) if line.lstrip().startswith("#") else
        re.sub(r"\s#[^'\"\r]*", f" {MASKED}", line)
        for line in text.split("\n")
    ]  # fmt: skip
    return names.text("\n".join(lines))


# Options about consoles, GPUs and their isolation; Linux
# Documentation/admin-guide/kernel-parameters.txt.
_OPTION = re.compile(
    r"(?:video|console|fbcon|vga|quiet|splash|nomodeset|nofb|initcall_blacklist|lockdown|lsm"
    r"|security|selinux|apparmor|enforcing|iomem|(?:efi|vesa|simple|uefi|uvesa)(?:fb|drm)?"
    r"|(?:[\w.-]*(?:iommu|blacklist|vfio|pci))[\w.-]*"
    r"|(?:kvm|drm|i915|xe|amdgpu|radeon|nouveau|nvidia|sysfb|efi)[\w.-]*)(?:[=:].*)?"
)


def _command_line(text: str, names: Replacements) -> str:
    kept = [
        word
        for word, name, value in kernel.options(text)
        if _OPTION.fullmatch(f"{name}={value}") or misspelt.name_meant(name)
    ]
    return names.text(" ".join(kept)) + "\n"


def _disks(text: str, names: Replacements) -> str:
    """Of the file systems that are mounted, the numbers and kernel names of their disks."""
    kept = []
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        numbers, source = front.split()[:3], back.split()[:2]
        if len(numbers) > 2 and source[1:] and re.fullmatch(r"/dev/[a-z]+[a-z\d]*", source[1]):
            kept.append(" ".join((*numbers, "/ / rw -", *source, "rw")))
    return "".join(f"{line}\n" for line in kept)


def _mounts(text: str, names: Replacements) -> str:
    """Only the types of the file systems that are mounted at homes and /proc."""
    lines = [line.split() for line in text.splitlines()]
    kept = [one for one in lines if len(one) > 3 and re.match(r"/(?:home|root|proc)\b", one[1])]
    return names.text("".join(f"none {one[1]} {one[2]} rw 0 0\n" for one in kept))


# -- hooks of other programs

_CALLED = "/etc/libvirt/hooks/vfio-console-hook"
_KEPT_LINE = re.compile(r"\bvirsh\b|^\s*(?:import|from)\s+libvirt\b|" + re.escape(_CALLED))
# Words of shell lines with virsh that are not names, such as its usual commands.
_VIRSH_WORDS = frozenset(
    "virsh if then else elif fi do done while for in exec sudo echo import from libvirt start"
    " destroy shutdown reboot list dominfo domstate domid domname domuuid dumpxml nodedev-detach"
    " nodedev-reattach nodedev-list nodedev-reset nodedev-dumpxml attach-device detach-device"
    " setvcpus vcpupin emulatorpin net-start net-destroy net-list schedinfo suspend resume edit"
    " define undefine autostart true false dev null all qemu system".split()
)

_CALLED_SCRIPT = re.compile(
    r"(?<![\w/.-])(?:/(?:usr/(?:local/)?)?s?bin/|/etc/libvirt/hooks/)[\w./-]+|[\w.-]+\.sh\b"
)
_WORDS = re.compile(r"([\w./:@%+,~^*?\\-]+)")
_NOT_A_NAME = re.compile(
    rf"\W*|\d|vm\d+|VM\d+|pci_[0-9a-f_]+|--?[a-z][a-z-]*|qemu:///(?:system|session)?|{_CALLED}"
)


def _script(text: str, names: Replacements) -> str:
    """Only what doctor looks for in scripts of hooks, and the first line; lines keep numbers."""
    if "\0" in text:
        return "\0"
    lines = [_script_line(number, line, names) for number, line in enumerate(text.split("\n"))]
    while lines and lines[-1] in ("", MASKED):
        lines.pop()
    return "".join(f"{line}\n" for line in lines)


def _script_line(number: int, line: str, names: Replacements) -> str:
    code = line.rstrip("\r")
    end = line[len(code) :]
    if (number == 0 and code.startswith("#!")) or code.startswith("# vfio-console-hook: the gate"):
        return names.text(code) + end
    if not code.strip():
        return line
    code = "" if code.lstrip().startswith("#") else re.split(r"\s#", code)[0]
    if _KEPT_LINE.search(code):
        return "".join(_word(part) for part in _WORDS.split(names.text(code))) + end
    # What else doctor finds in a script, in its own words: what it does, and what it calls.
    kept = [*hook_scripts.examples(_encoded(code)), *_CALLED_SCRIPT.findall(names.text(code))]
    return ("; ".join(kept) or MASKED) + end


def _word(part: str) -> str:
    """A word of a shell line, or what separates two; "x" for a possible name."""
    return part if part in _VIRSH_WORDS or _NOT_A_NAME.fullmatch(part) else "x"


# -- denials

_FILES_OF_HOOKS = re.compile(
    r"qemu|modprobe|kmod|systemctl|iomem|kallsyms|(?:50-)?vfio-console-hook|/?(?:etc/libvirt|usr|bin|sbin|lib|dev|proc|sys|run)(?:/[\w.-]+)*"
)
_KEPT_FIELDS = (
    "type", "apparmor", "operation", "profile", "class", "capname", "tclass", "permissive", "mask",
    "requested_mask", "denied_mask", "comm", "peer", "scontext", "tcontext",
)  # fmt: skip
_KEPT_VALUE = re.compile(r"[\w/:.,-]{1,100}")


def _denials(text: str, names: Replacements) -> str:
    """The last denials for hooks or libvirt: process, operation and label."""
    about = re.compile(
        r'audit\(.*(?:comm="(?:qemu|(?:50-)?vfio-con|rpc-|virtqemud|libvirtd)'
        rf'|scontext=\S+:(?:{"|".join((*DAEMON_DOMAINS, *HOOK_DOMAINS))}):'
        r'|profile="[^"]*(?:libvirtd|virtqemud))'
    )
    lines = [line for line in text.splitlines() if about.search(line)]
    return names.text("".join(f"{_denial(line)}\n" for line in lines[-100:]))


def _denial(line: str) -> str:
    when = re.search(r"audit\(\d+\.\d+:\d+\)", line)
    what = re.search(r"avc:\s+denied\s+\{ [\w ]* \}", line)
    kept = [when[0] + ":" if when else "", f"{what[0]} for " if what else ""]
    for key, value in re.findall(r'(\w+)=("[^"]*"|\S+)', line):
        bare = value.strip('"')
        if key in _KEPT_FIELDS and _KEPT_VALUE.fullmatch(bare):
            kept.append(f"{key}={value}")
        elif key in ("path", "name"):
            shown = bare if _FILES_OF_HOOKS.fullmatch(bare) else "x"
            kept.append(f'{key}="{shown}"')
    return " ".join(one for one in kept if one)


_GPU_MODULES = r"vfio|nvidia|nouveau|amdgpu|radeon|i915|\bxe\b|snd_hda|simpledrm|bochs|\bast\b"

MASKS: tuple[tuple[re.Pattern[str], Callable[[str, Replacements], str]], ...] = tuple(
    (re.compile(pattern), mask)
    for pattern, mask in (
        # Capabilities may contain a serial number, and boot_params the kernel command line.
        (r"sys/.*/config|sys/kernel/boot_params/data", _first_bytes),
        (r"sys/.*/(?:vpd|edid|rom)", lambda text, names: ""),
        (r"sys/.*/(?:[a-z_]*serial(?:_number)?|[a-z_]*uuid|[a-z_]*asset_tag|unique_id|wwid)",
         _masked),
        (r"sys/(?:class|devices/virtual)/dmi/id/(?!sys_vendor|product_name|bios_).*", _masked),
        (r"proc/sys/kernel/(?:osrelease|version)|proc/(?:iomem|ioports|fb|kallsyms)",
         lambda text, names: text),
        # QEMU's user, and no other.
        (r"etc/passwd", _only(r"^(?:libvirt-qemu|qemu|nobody|root):")),
        (r"etc/group", _only(r"^\w+:[^:]*:\d+:(?:.*,)?(?:libvirt-qemu|qemu|nobody)(?:,|$)")),
        (r"proc/sys/kernel/hostname|etc/hostname|proc/\d+/(?:cmdline|environ)",
         _masked),
        (r"proc/cmdline", _command_line),
        (r"proc/cpuinfo", _only(r"^(?:vendor_id|model name|flags)\s*:")),
        (r"proc/stat", _only("^btime ")),
        (r"proc/(?:\d+/)?(?:mounts|mountinfo)", _mounts),
        (r"proc/self/mountinfo", _disks),
        (r"proc/swaps", _only(r"^Filename|^/dev/[a-z]+[a-z\d]*\s")),
        (r"proc/\d+/cgroup", _cgroup),
        (r"proc/\d+/status", _only(r"^(?:State|Tgid|Pid|PPid|Uid|NSpid):")),
        (r"proc/\d+/(?:comm|stat|wchan|attr/.*)", lambda text, names: names.text(text)),
        (r"run/systemd/users/\d+", _only("^(?:NAME|STATE)=")),
        (r"libvirt/\d+/name", lambda text, names: names.vm(text.strip("\n")) + "\n"),
        (_XML.pattern, _outline),
        (r"run/vfio-console-hook.*", lambda text, names: names.json(text)),
        (r"etc/vfio-console-hook/.*|etc/modprobe\.d/.*", _settings),
        (r"etc/libvirt/hooks/.*|proc/\d+/root/.*", _script),
        (r"etc/libvirt/.*", _settings),
        (r"etc/apparmor\.d/.*", _only(r"bin/.*x\s*,")),
        (r"sys/kernel/security/apparmor/profiles", _only(r"libvirtd|virtqemud|/python")),
        (r"(?:usr/)?lib/modules/.*/modules\.(?:dep|builtin)", _only(_GPU_MODULES)),
        (r"ran/.*modprobe --showconfig", _only(r"^blacklist |^install \S+ \S*/(?:true|false)$")),
        (r"ran/.*(?:journalctl|ausearch|dmesg|denied).*(?<!\.failed)|var/log/.*", _denials),
    )
)  # fmt: skip
