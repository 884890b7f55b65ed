"""What the inputs of each target are made of, as a dictionary of libFuzzer has it."""

from __future__ import annotations

XML = (
    "<!DOCTYPE", "<!ENTITY", "SYSTEM", "<![CDATA[", "]]>", "&#x0;", "&lt;", "<?xml",
    "encoding='UTF-16'", "encoding='UTF-7'", "<hostdev", "<source>", "<address",
    "domain='0x", "bus='", "slot='", "function='", "type='pci'", "<qemu:arg value='",
    "-device", "vfio-pci", "host=", "sysfsdev=", "xmlns", "<xi:include", "<name>",
    "<uuid>", "<devices>", "<metadata>", "mode='subsystem'", "managed='yes'", "\\xff",
    "\\xfe\\xff", "{'driver'",
)  # fmt: skip

YAML = (
    "enabled", "stages", "bootfb", "keep_console", "host_driver", "apu", "services",
    "holders", "wait_s", "terminate", "grace_s", "on_failure", "timeout_s", "log_level",
    "true", "null", "~", "&a", "*a", "<<:", "!!python/object", "!!binary", "!", "---",
    "...", "%YAML 1.1", "%TAG", "- ", ": ", "? ", "|\\x0a", ">\\x0a", "\\x22\\x5c", ".inf",
    ".nan", "0x", "1e9", "1_000", "2001-01-01", "\\x5cU00110000", "\\x5cx00", "\\x09",
    "\\xef\\xbb\\xbf", "[", "{", "]", "}", "#", "\\x0d\\x0a", "'", "%",
)  # fmt: skip

CLAIM = (
    "BOOT", "{\\x22", "\\x22step\\x22", "\\x22done\\x22", "\\x22undone\\x22",
    "\\x22phase\\x22", "\\x22hook\\x22", "\\x22worker\\x22", "\\x22kind\\x22", "null",
    "true", "NaN", "Infinity", "-1", "1e999", "[[[[", "..", "../", "/etc", "\\x0a",
    "\\x5cud800", "\\x5cu0000", "\\x22undo\\x22", "\\x22do\\x22", "\\x22gpu\\x22",
    "\\x22fb\\x22", "\\x22wait_s\\x22", "9999999999999999999999",
)  # fmt: skip

SYSFS = (
    "0x", "-1", "efifb", "BOOTFB", "PCI Bus", "0000:01:00.0", "..", "../..", "/", "(S)",
    "frame buffer device", "\\x00", "\\xff", "99999999999999999999", "\\x0a", "-", " : ",
    "vfio-pci", "\\xc2\\xb2", "none", "auto",
)  # fmt: skip

ARGV = (
    "--root", "--connect", "--help", "--version", "--json", "--xml", "--svg", "--vm",
    "--force", "plan", "status", "doctor", "record", "recover", "take", "give", "\\x00",
    "check-config", "..", "\\x0a", "\\x1b[2J", "\\xff", "-", "--", "=", "prepare",
    "begin", "release", "end", "test:", "@", "%s", "{}",
)  # fmt: skip

TREE = (
    "d ", "f ", "l ", "x ", " -> ", " = ", "\\x0a|", "..", "../", "CANARY", "/etc/passwd",
    "stat/", "refused/", "ran/", "ioctl/", "label/", "libvirt/1/name", "recorded/now",
    "proc/iomem", "sys/bus/pci/devices/0000:01:00.0/", "class", "resource", "config",
    "0x030000", "sys/class/graphics/fb0", "ioctl/con2fbmap", "ioctl/fb0/memory",
    "proc/1/fd/3", "run/vfio-console-hook/claims/", "refused/proc/iomem = 13",
    "sys/bus/platform/devices/efi-framebuffer.0", "/../", ".itself", "\\x00", "1-63 0",
)  # fmt: skip
