"""The parts of the lab that need no machine."""

from __future__ import annotations

import functools
import struct
import threading
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..natives import STAND_IN_MODULES, STAND_INS
from . import __main__ as command_line
from . import debian, images, kernels, modular, stand_ins, u_boot
from .architectures import ARM64
from .cache import Cache
from .dropin import disorder
from .machine import Gpu, Hardware, qemu_arguments
from .pictures import Picture, read_ppm
from .scenarios import SCENARIOS
from .vm import GuestGpu, domain_xml, mapped_bars, read_gpu

BLACK, WHITE, GREY = b"\0\0\0", b"\xff\xff\xff", b"\x20\x20\x20"


def test_a_ppm_whose_pixels_look_like_blanks_is_read_whole(tmp_path: Path) -> None:
    pixels = b"\n \t" * 4
    (tmp_path / "screen.ppm").write_bytes(b"P6\n2 2\n255\n" + pixels)

    picture = read_ppm(tmp_path / "screen.ppm")

    assert picture == Picture(2, 2, pixels)


def test_a_picture_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "screen.ppm").write_bytes(b"P5\n2 2\n255\n0000")

    with pytest.raises(ValueError, match="is no 8 bit PPM picture"):
        read_ppm(tmp_path / "screen.ppm")


def test_only_visible_differences_count() -> None:
    dark = Picture(2, 1, BLACK + BLACK)
    half = Picture(2, 1, GREY + WHITE)

    assert (dark.difference(half), half.lit()) == (0.5, 0.5)


def test_the_corner_is_the_upper_left() -> None:
    picture = Picture(2, 2, WHITE + BLACK + GREY + BLACK)

    assert picture.corner(1, 5) == Picture(1, 2, WHITE + GREY)


# Lines of /proc/PID/maps of the nested QEMU.
MAPS_5_10 = """\
7fd831600000-7fd832600000 rw-s c0000000 00:0d 8944    anon_inode:[vfio-device]
7fd837202000-7fd837203000 rw-s c1000000 00:0d 8944    anon_inode:[vfio-device]
"""
MAPS_6_12 = """\
7fb329000000-7fb32a000000 rw-s 00000000 00:10 1138    anon_inode:[vfio-device]
7fb8f9e5e000-7fb8f9e5f000 rw-s 20000000000 00:10 1138    anon_inode:[vfio-device]
"""


@pytest.mark.parametrize("maps", [MAPS_5_10, MAPS_6_12])
def test_bar_0_is_found_whichever_offset_the_kernel_shows(maps: str) -> None:
    gpu = GuestGpu("0000:01:00.0", 0xC0000000, 0x1000000)

    found = mapped_bars(maps, (gpu,))

    assert found == [maps.splitlines()[0]]


def test_registers_alone_are_not_a_mapped_bar_0() -> None:
    gpu = GuestGpu("0000:01:00.0", 0xC0000000, 0x1000000)

    found = mapped_bars(MAPS_6_12.splitlines()[1], (gpu,))

    assert found == []


def test_the_domain_owns_each_gpu() -> None:
    gpus = (GuestGpu("0000:01:00.0", 0, 1), GuestGpu("0000:0a:1f.7", 0, 1))

    xml = domain_xml(gpus)

    assert xml.count("<hostdev ") == 2
    assert "<address domain='0x0000' bus='0x0a' slot='0x1f' function='0x7'/>" in xml


# `resource` of a VGA on the root bus, seen on 6.1.
RESOURCE = """\
0x00000000c0000000 0x00000000c0ffffff 0x0000000000042208
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000c1001000 0x00000000c1001fff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000000c0000 0x00000000000dffff 0x0000000000000212
"""


@pytest.mark.parametrize(("flags", "shadowed"), [("212", True), ("200", False)])
def test_the_seventh_line_of_resource_shows_whether_the_rom_is_shadowed(
    flags: str, shadowed: bool
) -> None:
    gpu = read_gpu("0000:00:06.0", RESOURCE.replace("212", flags))

    assert gpu == GuestGpu("0000:00:06.0", 0xC0000000, 0x1000000, shadowed)


def hook_log(**other: str) -> list[str]:
    """The log of the foreign hooks for one start and destroy when ours runs between them."""
    claims = {
        "prepare:begin": "001", "start:begin": "111", "started:begin": "111",
        "stopped:end": "111", "release:end": "110",
    }  # fmt: skip
    return [
        f"{name} {event} digest-of-{event} {other.get(event, counts)[number]}"
        for event, counts in claims.items()
        for number, name in enumerate(("qemu", "10-foreign", "90-foreign"))
    ]


def test_the_hooks_in_their_order_are_no_disorder() -> None:
    assert disorder(hook_log()) == []


@pytest.mark.parametrize(
    ("log", "wrong"),
    [
        (hook_log(**{"prepare:begin": "000"}), "prepare:begin: ours did not run between"),
        (hook_log(**{"release:end": "100"}), "release:end: ours did not run between"),
        (hook_log()[1:], "prepare:begin: libvirt called"),
        ([hook_log()[0].replace("digest", "other"), *hook_log()[1:]], "they did not read the same"),
        ([*hook_log(), "qemu migrate:begin digest 0"], "migrate:begin: was not expected"),
    ],
)
def test_a_hook_that_is_missing_or_late_or_reads_something_else_is_reported(
    log: list[str], wrong: str
) -> None:
    (reported,) = disorder(log)

    assert wrong in reported


def test_a_small_budget_leaves_scenarios_out_and_forgets_none(tmp_path: Path) -> None:
    chosen, left_out = command_line.fit(SCENARIOS, Cache(tmp_path), 20 * 60, 2)

    assert chosen and left_out
    assert {*chosen, *left_out} == {*SCENARIOS}


def test_only_the_first_build_of_a_source_counts_as_a_long_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (cache.root / "builds/root-trixie-0/manifest.json").parent.mkdir()
    (cache.root / "builds/root-trixie-0/manifest.json").touch()
    arch = kernels.named("arch-6.12")

    first = kernels.seconds_to_build(cache, arch)

    assert kernels.seconds_to_build(cache, arch, ["6.12", "fedora-7"]) == first
    assert kernels.seconds_to_build(cache, arch, ["fedora-6.12"]) < first / 4


def test_a_variant_of_a_root_is_no_build_of_the_root_itself(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    debian_13 = kernels.named("6.12")
    plain = kernels.seconds_to_build(cache, debian_13)
    variant = kernels.seconds_to_build_root(cache, debian_13, "virtqemud")
    (cache.root / "builds/root-trixie-virtqemud-0").mkdir()
    (cache.root / "builds/root-trixie-virtqemud-0/manifest.json").touch()

    assert kernels.seconds_to_build(cache, debian_13) == plain
    assert variant > kernels.seconds_to_build_root(cache, debian_13, "virtqemud") == 0


def test_a_kernel_whose_modules_have_left_the_pool_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "linux-modules-7.0.13+deb13-amd64"
    pool = tmp_path / "mirror/pool/main/l/linux"
    pool.mkdir(parents=True)
    (pool / f"{name.replace('modules', 'base')}_7.0.13-1_amd64.deb").touch()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(debian.Suite, "_refresh", lambda _: None)
    monkeypatch.setattr(debian.Suite, "version_of", lambda *_: "7.0.13-1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(debian, "mirror", lambda: f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()

        why = kernels.not_offered(Cache(tmp_path / "cache"), kernels.named("7.0.13"))
        (pool / f"{name}_7.0.13-1_amd64.deb").touch()
        now = kernels.not_offered(Cache(tmp_path / "cache"), kernels.named("7.0.13"))
        server.shutdown()

    assert (why, now) == (f"the mirror no longer has {name}_7.0.13-1", "")


def test_a_build_is_made_once_and_not_left_half_done(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = []

    def make(directory: Path, log: Path) -> None:
        made.append(directory.name)
        (directory / "file").write_text("content")

    first = cache.build("thing", {"version": 1}, make)
    second = cache.build("thing", {"version": 1}, make)

    assert (first, len(made)) == (second, 1)
    assert made[0].endswith(".partial")


def test_scenario_names_are_unique() -> None:
    names = [scenario.name for scenario in SCENARIOS]

    assert sorted(set(names)) == sorted(names)


def test_every_scenario_has_a_root_that_can_be_built() -> None:
    assert {one.root for one in SCENARIOS} - {""} == set(images.VARIANTS)


def test_virtqemud_is_enabled_and_libvirtd_is_masked(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    for name in ("virtqemud", "virtqemud.conf", *modular.UNITS):
        (built / name).write_text(name)
    tree = tmp_path / "tree"

    modular.place(built, tree)

    settings = tree / "etc/systemd/system"
    enabled = [*settings.glob("*.wants/virtqemud*")]
    targets = {str(one.readlink()).lstrip("/") for one in enabled}
    masked = {one.name for one in settings.iterdir() if one.is_symlink()}
    assert targets == {f"usr/lib/systemd/system/{unit}" for unit in modular.UNITS}
    assert all((tree / target).read_text() == Path(target).name for target in targets)
    assert {"libvirtd.service", "libvirtd.socket"} <= masked
    assert not any(Path(one.name).suffix == ".service" for one in settings.glob("sockets*/*"))


def test_each_stand_in_has_its_source_and_a_row_for_the_fake_kernel() -> None:
    named = {name for scenario in SCENARIOS for name in scenario.stand_ins}

    assert {name for name in named if not (stand_ins.SOURCES / f"{name}.c").exists()} == set()
    drives_nothing = {"class_0302", "foreign"}
    assert named - drives_nothing <= {*STAND_INS, *STAND_IN_MODULES}


def test_u_boot_finds_the_checksums_of_its_script_right() -> None:
    # As mkimage writes it: checksums of header and data, and before the text its length.
    made = u_boot.script(b"bootefi\n")

    magic, checksum, _, size, _, _, of_data = struct.unpack(">7I", made[:28])
    header, data = made[:4] + bytes(4) + made[8:64], made[64:]
    assert (magic, size, data[8:]) == (0x27051956, len(data), b"bootefi\n")
    assert (checksum, of_data) == (zlib.crc32(header), zlib.crc32(data))
    assert struct.unpack(">II", data[:8]) == (len(b"bootefi\n"), 0)


def test_a_machine_of_arm64_boots_its_kernel_and_line_from_a_disk(tmp_path: Path) -> None:
    kernel = kernels.named("arm64-6.12")
    files = (tmp_path / name for name in ("kernel", "modules", "initrd", "root"))
    built = kernels.Built(kernel, "6.12", *files)
    hardware = Hardware((Gpu("bochs-display"),), Path("/u-boot"), "quiet", architecture=ARM64)

    argv = qemu_arguments(hardware, built, tmp_path / "program", tmp_path)

    line = (tmp_path / "boot/boot.scr").read_bytes()
    assert argv[0] == "qemu-system-aarch64" and "-kernel" not in argv
    assert f"file=fat:{tmp_path}/boot,format=raw,if=none,readonly=on,id=disk3" in argv
    assert (tmp_path / "boot/vmlinuz").readlink() == built.image
    assert b"console=ttyAMA0" in line and b"quiet" in line and b"ttyS0" not in line
    assert "intel-iommu" not in " ".join(argv)
