"""The configuration: its keys, their values, and how mistakes are reported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Golden
from tests.gate import ROOT
from vfio_console_hook.config import load
from vfio_console_hook.config.keys import GROUPS, KEYS, Key
from vfio_console_hook.config.load import configuration
from vfio_console_hook.config.service import Service
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.errors import ConfigError
from vfio_console_hook.machine.snapshot import SnapshotHost

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
FILES = "/etc/vfio-console-hook"
DEFAULT = f"{FILES}/default.yaml"
WIN11 = f"{FILES}/vms/win11.yaml"
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))


class Etc(SnapshotHost):
    """A machine that has only a configuration; the files in theirs belong to another user."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.theirs: set[str] = set()
        for directory in ("etc", load.DIRECTORY, load.VMS):
            (root / directory).mkdir(0o755)
            (root / directory).chmod(0o755)

    def put(self, path: str, content: bytes | str, mode: int = 0o644) -> Path:
        file = Path(self.path(path[1:]))
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def stat(self, path: str) -> os.stat_result | None:
        status = super().stat(path)
        if status is None or f"/{path}" not in self.theirs:
            return status
        return os.stat_result((*status[:4], 12345, *status[5:10]))


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def mistakes(host: SnapshotHost, name: str = "win11", uuid: str = UUID) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration(host, name, uuid)
    return str(caught.value)


# -- which files


def test_without_any_file_everything_has_its_default(tmp_path: Path) -> None:
    assert configuration(SnapshotHost(str(tmp_path)), "win11", UUID) == Config(
        enabled=True,
        stages=("fbcon", "drm_aperture", "fbdev", "vgacon"),
        bootfb="aperture",
        keep_console="auto",
        holders=Holders(wait_s=5),
        on_failure="abort",
        on_refusal="none",
        announce=("login", "session"),
        timeout_s=60,
        log_level="info",
    )


def test_every_key_can_be_set(etc: Etc) -> None:
    etc.put(
        DEFAULT,
        "enabled: no\nstages: [vgacon, fbcon]\nbootfb: native\nkeep_console: never\n"
        "holders:\n  wait_s: 2.5\non_failure: start\ntimeout_s: 7\nlog_level: debug\n"
        "on_refusal: /bin/sh -c true\nannounce: [session]\n",
    )

    assert configuration(etc, "win11", UUID) == Config(
        enabled=False,
        stages=("vgacon", "fbcon"),
        bootfb="native",
        keep_console="never",
        holders=Holders(wait_s=2.5),
        on_failure="start",
        on_refusal="/bin/sh -c true",
        announce=("session",),
        timeout_s=7,
        log_level="debug",
    )


@pytest.mark.parametrize("file", [f"{UUID}.yaml", f"{UUID.upper()}.yaml", "win11.yaml"])
def test_the_file_of_the_vm_overrides_the_default_key_by_key(etc: Etc, file: str) -> None:
    etc.put(DEFAULT, "bootfb: native\ntimeout_s: 30\nholders: {wait_s: 1}\n")
    etc.put(f"{FILES}/vms/{file}", "bootfb: rescan\nlog_level: error\nholders:\n")

    assert configuration(etc, "win11", UUID) == Config(
        bootfb="rescan", timeout_s=30, holders=Holders(wait_s=1), log_level="error"
    )


@pytest.mark.parametrize("name", ["win10", "..", "../default", "", "WIN11", "win11.yaml", "*"])
def test_the_file_of_another_vm_is_not_read(etc: Etc, name: str) -> None:
    etc.put(WIN11, "enabled: false\n")
    etc.put(f"{FILES}/vms/.yaml", "enabled: false\n")

    assert configuration(etc, name, "") == Config()


@pytest.mark.parametrize("name", ["--help", "..", " ", "a\nb", "gr\u00fcn", ".hidden", "$(x)"])
def test_a_file_may_have_any_name_that_a_vm_can_have(etc: Etc, name: str) -> None:
    etc.put(f"{FILES}/vms/{name}.yaml", "enabled: false\n")

    assert configuration(etc, name, UUID) == Config(enabled=False)


def test_a_file_for_the_name_and_one_for_the_uuid_are_a_mistake(etc: Etc) -> None:
    etc.put(WIN11, "enabled: false\n")
    etc.put(f"{FILES}/vms/{UUID}.yaml", "enabled: true\n")

    assert mistakes(etc) == (
        f"{FILES}/vms/{UUID}.yaml and {WIN11} are for the same VM; keep one of them"
    )


def test_a_vm_whose_name_is_its_uuid_has_one_file(etc: Etc) -> None:
    etc.put(f"{FILES}/vms/{UUID}.yaml", "enabled: false\n")

    assert configuration(etc, UUID, UUID) == Config(enabled=False)


# -- who may write them


@pytest.mark.parametrize("path", [FILES, DEFAULT, f"{FILES}/vms", WIN11])
def test_a_file_of_another_user_is_refused_and_not_read(etc: Etc, path: str) -> None:
    etc.put(DEFAULT, "")
    etc.put(WIN11, "")
    etc.put(path, "root:secret\n") if path.endswith(".yaml") else None
    etc.theirs = {path}

    assert mistakes(etc) == f"{path} belongs to user 12345 instead of root"


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("path", [FILES, DEFAULT, f"{FILES}/vms", WIN11])
def test_a_file_that_others_can_write_is_refused_and_not_read(
    etc: Etc, path: str, mode: int
) -> None:
    etc.put(DEFAULT, "")
    etc.put(WIN11, "")
    etc.put(path, "root:secret\n") if path.endswith(".yaml") else None
    os.chmod(etc.path(path[1:]), 0o755 | mode)

    assert mistakes(etc) == f"{path} can be written by others than root, run `chmod go-w {path}`"


def test_a_link_into_a_directory_that_others_can_write_is_refused(etc: Etc) -> None:
    Path(etc.path("srv")).mkdir()
    etc.put("/srv/win11.yaml", "enabled: false\n")
    Path(etc.path("srv")).chmod(0o777)
    Path(etc.path(WIN11[1:])).symlink_to("/srv/win11.yaml")

    assert mistakes(etc) == "/srv can be written by others than root, run `chmod go-w /srv`"


def test_a_link_to_a_safe_file_is_followed(etc: Etc) -> None:
    Path(etc.path("srv")).mkdir(0o755)
    Path(etc.path("srv")).chmod(0o755)
    etc.put("/srv/win11.yaml", "enabled: false\n")
    Path(etc.path(WIN11[1:])).symlink_to("/srv/win11.yaml")

    assert configuration(etc, "win11", UUID) == Config(enabled=False)


def test_a_dangling_link_is_a_mistake(etc: Etc) -> None:
    Path(etc.path(WIN11[1:])).symlink_to("nowhere.yaml")

    assert mistakes(etc) == f"{WIN11} is a link to nothing"


@pytest.mark.parametrize("path", [DEFAULT, WIN11])
def test_a_directory_in_place_of_a_file_is_a_mistake(etc: Etc, path: str) -> None:
    Path(etc.path(path[1:])).mkdir()

    assert mistakes(etc) == f"{path} is not a regular file"


def test_a_fifo_in_place_of_a_file_does_not_block(etc: Etc) -> None:
    os.mkfifo(etc.path(WIN11[1:]), 0o644)

    assert mistakes(etc) == f"{WIN11} is not a regular file"


@pytest.mark.parametrize("path", [FILES, f"{FILES}/vms"])
def test_a_file_in_place_of_a_directory_is_a_mistake(etc: Etc, path: str) -> None:
    Path(etc.path(load.VMS)).rmdir()
    if path == FILES:
        Path(etc.path(load.DIRECTORY)).rmdir()
    etc.put(path, "")

    assert mistakes(etc) == f"{path} is not a directory"


def test_a_file_of_32_kib_is_read_and_a_longer_one_is_not(etc: Etc) -> None:
    text = "#" * 32_750 + "\nenabled: false\n"
    etc.put(DEFAULT, text.rjust(32_768, "#"))

    assert configuration(etc, "win11", UUID) == Config(enabled=False)

    etc.put(DEFAULT, text.rjust(32_769, "#"))

    assert mistakes(etc) == f"{DEFAULT} is 32769 bytes long, more than 32768"


# -- their content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"# only\n  # comments\n",
        b"---\n",
        b"--- # nothing\n...\n",
        b"{}",
        b"~",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf# a mark\r\n",
        b"holders:\n",
        b"holders: {}\n",
    ],
)
def test_a_file_without_settings_changes_nothing(etc: Etc, content: bytes) -> None:
    etc.put(DEFAULT, content)

    assert configuration(etc, "win11", UUID) == Config()


@pytest.mark.parametrize(
    "content",
    [
        b"timeout_s: 9\r\nbootfb: native\r\n",
        b"\xef\xbb\xbftimeout_s: 9\nbootfb: native",
        b"timeout_s: 9\rbootfb: 'native'\r",
        b'%YAML 1.1\n---\n{timeout_s: 9, "bootfb": "native"}\n',
        b"\n# a\n\ntimeout_s:\n  9\n? bootfb\n: native\n",
    ],
)
def test_a_file_may_come_from_any_editor(etc: Etc, content: bytes) -> None:
    etc.put(DEFAULT, content)

    assert configuration(etc, "win11", UUID) == Config(timeout_s=9, bootfb="native")


@pytest.mark.parametrize(
    ("written", "enabled"),
    [("true", True), ("yes", True), ("On", True), ("false", False), ("No", False), ("OFF", False)],
)
def test_yes_and_no_are_booleans(etc: Etc, written: str, enabled: bool) -> None:
    etc.put(DEFAULT, f"enabled: {written}\n")

    assert configuration(etc, "win11", UUID) == Config(enabled=enabled)


@pytest.mark.parametrize(("written", "wait_s"), [("0", 0.0), ("600", 600.0), ("0.25", 0.25)])
def test_a_wait_is_any_number_of_seconds_up_to_600(etc: Etc, written: str, wait_s: float) -> None:
    etc.put(DEFAULT, f"holders:\n  wait_s: {written}\n")

    assert configuration(etc, "win11", UUID) == Config(holders=Holders(wait_s=wait_s))


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0000:02:00.0", "0000:02:00.0"),
        ("'0000:02:00.0'", "0000:02:00.0"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("02:00.0", "0000:02:00.0"),  # a number of base 60 to YAML 1.1
        ("0A:00.0", "0000:0a:00.0"),
    ],
)
def test_the_console_may_be_kept_on_a_gpu_by_its_address(
    etc: Etc, written: str, address: str
) -> None:
    etc.put(DEFAULT, f"keep_console: {written}\n")

    assert configuration(etc, "win11", UUID) == Config(keep_console=address)


def test_services_are_units_or_commands(etc: Etc) -> None:
    etc.put(
        DEFAULT,
        "services:\n  - display-manager\n  - name: sddm\n"
        "    active: /sbin/rc-service sddm status\n    stop: /sbin/rc-service sddm stop\n"
        "    start: /sbin/rc-service sddm start\n",
    )

    assert configuration(etc, "win11", UUID).services == (
        Service("display-manager"),
        Service(
            "sddm",
            ("/sbin/rc-service", "sddm", "status"),
            ("/sbin/rc-service", "sddm", "stop"),
            ("/sbin/rc-service", "sddm", "start"),
        ),
    )


def test_a_service_may_start_again_as_soon_as_the_gpu_has_left(etc: Etc) -> None:
    etc.put(DEFAULT, "services:\n  - name: gdm\n    start_again: detached\n")

    assert configuration(etc, "win11", UUID).services == (Service("gdm", start_again="detached"),)


# A line with a bad value, and the column of the value.
BAD_VALUES = (
    ("enabled: 1", 10),
    ("enabled: 'true'", 10),
    ("enabled: flase", 10),
    ("enabled:", 9),
    ("stages: Fbcon", 9),
    ("stages: fbcon, fbdev", 9),
    ("stages: [fbcon, efifb]", 17),
    ("stages: [fbcon, fbcon]", 9),
    ("stages: [[fbcon]]", 9),
    ("stages: {fbcon: on}", 9),
    ("bootfb: Native", 9),
    ("bootfb: nativ", 9),
    ("bootfb: [rescan]", 9),
    ("bootfb: no", 9),
    ("keep_console: always", 15),
    ("keep_console: 0A:00", 15),
    ("services: sddm", 11),
    ("services: [--force]", 12),
    ("services: [gdm, 'a b']", 17),
    ("services: [null]", 12),
    ("services: [{name: sddm}]", 12),
    ("services: [{name: x, active: rc-service x, stop: /bin/x, start: /bin/x}]", 12),
    ("services: [{name: x, active: /x, stop: /x, start: /x, restart: /x}]", 12),
    ("services: [{name: x, start_again: later}]", 12),
    ("holders: {terminate: X}", 22),
    ("holders: {terminate: [{session: on}]}", 23),
    ("on_failure: ''", 13),
    ("on_refusal: mail root", 13),
    ("on_refusal: [/bin/mail, root]", 13),
    ("on_refusal: None", 13),
    ("announce: login", 11),
    ("announce: [logins]", 12),
    ("log_level: 3", 12),
    ("timeout_s: true", 12),
    ("timeout_s: 60.0", 12),
    ("timeout_s: '60'", 12),
    ("timeout_s: 60s", 12),
    ("timeout_s: 0", 12),
    ("timeout_s: 601", 12),
    ("timeout_s: -5", 12),
    ("timeout_s: 010", 12),
    ("timeout_s: 1:30", 12),
    ("timeout_s: 0x_", 12),
    ("holders: 5", 10),
    ("holders: []", 10),
    ("holders: {wait_s: .inf}", 19),
    ("holders: {wait_s: .nan}", 19),
    ("holders: {wait_s: -1}", 19),
    ("holders: {wait_s: 1e3}", 19),
    ("holders: {wait_s: on}", 19),
    ("holders: {wait_s: }", 18),
)

# A whole file with one mistake, and its line and column.
BAD_TEXTS = (
    ("stage: [fbcon]", "1:1"),
    ("\n\nBootFB: native", "3:1"),
    ("Timeout-S: 4", "1:1"),
    ("zzz: 1", "1:1"),
    ("wait_s: 1", "1:1"),
    ("holders.wait_s: 1", "1:1"),
    ("holders:\n  wait: 1", "2:3"),
    ("holders:\n  apu: allow", "2:3"),
    ("holders:\n  x: 1", "2:3"),
    ("<<: {bootfb: native}", "1:1"),
    ("? [a]\n: 1", "1:3"),
    ('"z\\nz": 1', "1:1"),
    ("bootfb: native\nbootfb: native", "2:1"),
    ("{bootfb: native, bootfb: refuse}", "1:18"),
    ("holders: {}\nholders: {}", "2:1"),
    ("holders:\n  wait_s: 1\n  wait_s: 2", "3:3"),
    ("services:\n  - gdm\n  - a b", "3:5"),
    ("services:\n  - gdm\n    - lactd", "3:5"),
    ("holders:\n  terminate:\n    - Xorg\n\n      - steam\n", "5:7"),
    ("services:\n  - systemctl stop sddm", "2:5"),
    ("services: [/usr/bin/lact daemon]", "1:12"),
    ("holders: {terminate: [Xorg, pkill -9 steam]}", "1:29"),
    ("holders: {terminate: [/usr/bin/steam]}", "1:23"),
    ("bootfb", "1:1"),
    ("- bootfb: native", "1:1"),
    ("bootfb: a: b", "1:10"),
    ("timeout_s: 1\n\tb: 2", "2:1"),
    ("holders:\n\twait_s: 2", "2:1"),
    ("bootfb native\napu: allow", "1:1"),
    ("apu: allow\n\nbootfb:native\n", "3:1"),
    ("// for gaming\napu: allow\n", "1:1"),
    ("apu: allow\n  bootfb: native", "2:3"),
    ("holders:\n    wait_s: 1\n  grace_s: 2", "3:3"),
    ("bootfb: [native", "1:9"),
    ("holders: {wait_s: 1\napu: allow", "1:10"),
    ("apu: 'allow\nbootfb: native", "1:6"),
    ("holders: {terminate: ['it's']}", "1:22"),
    ("apu: 'it's'", "1:10"),
    ("apu: @x", "1:6"),
    ("apu: 1\n---\nb: 2", "2:1"),
    ("a: 1\nb: \x07", "2:4"),
    ("a:\n  " + "[" * 30_000, "2:10"),
    ("a: &b c", "1:4"),
    ("a: 1\nb: *c", "2:4"),
    ("bootfb: !!str native", "1:9"),
    ("a: !!python/object/apply:os.system ['touch /tmp/pwned']", "1:4"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]", "1:4"),
)


@pytest.mark.parametrize(("line", "column"), BAD_VALUES)
def test_a_bad_value_is_a_mistake_at_its_place(etc: Etc, line: str, column: int) -> None:
    etc.put(WIN11, f"# a comment\n{line}\n")

    assert place(mistakes(etc)) == f"{WIN11}:2:{column}"


@pytest.mark.parametrize(("content", "at"), BAD_TEXTS, ids=lambda text: text[:30])
def test_a_bad_text_is_a_mistake_at_its_place(etc: Etc, content: str, at: str) -> None:
    etc.put(WIN11, content)

    assert place(mistakes(etc)) == f"{WIN11}:{at}"


def place(mistake: str) -> str:
    """FILE:LINE:COLUMN of one mistake."""
    return mistake.partition(": ")[0]


def test_each_mistake_says_what_is_wrong(golden: Golden) -> None:
    shown = []
    for content in (*(line for line, _ in BAD_VALUES), *(text for text, _ in BAD_TEXTS)):
        (mistake,) = load.mistakes_in("x.yaml", content.encode())
        shown.append(f"{content[:80]!r}\n    {mistake}\n")

    golden("config-mistakes", "".join(shown))


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"a\n# \xff\n", "2:3"), ("bootfb: native\n".encode("utf-16"), "1:1"), (b"\n\n\xe9", "3:1")],
)
def test_text_that_is_not_utf8_is_a_mistake(etc: Etc, content: bytes, place: str) -> None:
    etc.put(DEFAULT, content)

    assert mistakes(etc) == f"{DEFAULT}:{place}: not UTF-8"


def test_a_long_value_is_cut(etc: Etc) -> None:
    etc.put(DEFAULT, f"bootfb: {'x' * 1000}\n")

    text = f"'{'x' * 56}... for 'bootfb', it must be one of aperture, refuse, native, rescan"
    assert mistakes(etc) == f"{DEFAULT}:1:9: bad value {text}"


def test_all_mistakes_in_all_files_are_reported_at_once(etc: Etc) -> None:
    etc.put(DEFAULT, "stage: [fbcon]\ntimeout_s: soon\n")
    etc.put(WIN11, "holders:\n  wait: 1\nbootfb: nativ\n")
    etc.put(f"{FILES}/vms/{UUID}.yaml", "a: b: c\n")

    assert mistakes(etc).split("; ") == [
        f"{DEFAULT}:1:1: unknown key 'stage', did you mean 'stages'?",
        f"{DEFAULT}:2:12: bad value 'soon' for 'timeout_s', it must be"
        " a whole number from 1 to 600",
        f"{FILES}/vms/{UUID}.yaml and {WIN11} are for the same VM",
        "keep one of them",
        f"{FILES}/vms/{UUID}.yaml:1:5: a second `: ` in one line",
        "put the value in quotes if it belongs to it",
        f"{WIN11}:2:3: unknown key 'wait' in 'holders', did you mean 'wait_s'?",
        f"{WIN11}:3:9: bad value 'nativ' for 'bootfb', it must be one of aperture, refuse,"
        " native, rescan, did you mean native?",
    ]


def test_at_most_twenty_mistakes_are_reported(etc: Etc) -> None:
    etc.put(DEFAULT, "zzz: 1\n" * 30)

    texts = mistakes(etc).split("; ")

    assert (len(texts), texts[19:]) == (
        21,
        [f"{DEFAULT}:20:1: key 'zzz' is already set in line 1", "and 10 more mistakes"],
    )


# -- what it costs


@pytest.mark.parametrize(
    ("content", "loaded"),
    [(None, False), ("# bootfb: native\n\n", False), ("bootfb: native\n", True)],
)
def test_yaml_is_loaded_only_when_something_is_set(
    etc: Etc, content: str | None, loaded: bool
) -> None:
    if content is not None:
        etc.put(DEFAULT, content)
        etc.put(WIN11, content)
    program = (
        "import sys\n"
        "from vfio_console_hook.config import load\n"
        "from vfio_console_hook.machine import snapshot\n"
        "load.configuration(snapshot.SnapshotHost(sys.argv[1]), 'win11', '')\n"
        "print(*sorted({'difflib', 'yaml'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, etc.root], cwd=ROOT, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr) == ("yaml\n" if loaded else "\n", "")


# -- the files in config/


# "#key:", "#  key:" and "#  - item" are settings, "# text" is for people.
SETTING = re.compile(r"^#(?=(?P<inside>  )?(?:(?P<key>\w+):|- ))", re.MULTILINE)


def explained(text: str) -> list[tuple[str, list[str]]]:
    """Each setting that is commented out, with the first two lines of its paragraph."""
    found = []
    group = ""
    for paragraph in text.split("\n\n"):
        for setting in SETTING.finditer(paragraph):
            key = f"{group}.{setting['key']}" if setting["inside"] else setting["key"]
            if setting["key"] and not setting["inside"]:
                group = key
            if setting["key"]:
                found.append((key, paragraph.splitlines()[:2]))
    return found


def test_default_yaml_explains_every_key_in_the_words_of_the_program() -> None:
    text = (ROOT / "config/default.yaml").read_text(encoding="utf-8")

    found = [(name, lines) for name, lines in explained(text) if name not in GROUPS]

    assert found == [(key.name, [f"# {key.doc}", f"# Value: {key.wanted}"]) for key in KEYS]


def test_default_yaml_shows_the_defaults(etc: Etc) -> None:
    text = SETTING.sub("", (ROOT / "config/default.yaml").read_text(encoding="utf-8"))
    # Other values first, so that a missing default is found.
    etc.put(
        DEFAULT,
        "enabled: false\nstages: []\nbootfb: native\nkeep_console: never\nhost_driver: load\n"
        "apu: allow\nservices: [x]\nholders: {wait_s: 1, terminate: [x], grace_s: 1}\n"
        "release: {native: load, retry: reset}\n"
        "on_failure: start\ntimeout_s: 1\nlog_level: debug\n"
        "on_refusal: /bin/true\nannounce: []\n",
    )
    etc.put(WIN11, text)

    assert configuration(etc, "win11", UUID) == Config()


OTHER_VALUES = {
    "enabled": "false", "stages": "[]", "bootfb": "native", "keep_console": "never",
    "host_driver": "load", "apu": "allow", "services": "[x]", "holders.wait_s": "1",
    "holders.terminate": "[x]", "holders.grace_s": "1", "release.native": "load",
    "release.retry": "reset",
    "on_failure": "start", "timeout_s": "1", "log_level": "debug", "on_refusal": "/bin/true",
    "announce": "[login]",
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_of_a_file_reaches_the_settings(etc: Etc, key: Key) -> None:
    group, _, name = key.name.rpartition(".")
    value = f"{name}: {OTHER_VALUES[key.name]}"
    etc.put(WIN11, f"{group}: {{{value}}}\n" if group else f"{value}\n")

    settings: Any = configuration(etc, "win11", UUID)

    assert getattr(getattr(settings, group) if group else settings, name) != key.default


def test_every_default_is_a_good_value() -> None:
    written = [list(key.default) if isinstance(key.default, tuple) else key.default for key in KEYS]

    assert [key.read(value) for key, value in zip(KEYS, written)] == [key.default for key in KEYS]


def test_there_is_an_example_for_each_common_case() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "class-0380",
        "default",
        "own-commands",
        "single-amd-kde",
        "single-nvidia",
        "two-gpus",
    ]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("class-0380", Config(bootfb="native")),
        ("default", Config()),
        (
            "single-amd-kde",
            Config(
                services=(Service("display-manager"),),
                holders=Holders(wait_s=20, terminate=("session",)),
                timeout_s=90,
            ),
        ),
        (
            "single-nvidia",
            Config(
                services=(Service("display-manager"), Service("nvidia-persistenced")),
                holders=Holders(wait_s=30, terminate=("session",)),
                timeout_s=120,
            ),
        ),
        ("two-gpus", Config()),
    ],
)
def test_an_example_sets_what_it_describes(etc: Etc, example: str, expected: Config) -> None:
    etc.put(WIN11, (ROOT / f"config/{example}.yaml").read_bytes())

    assert configuration(etc, "win11", UUID) == expected


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ('apu: "\\U00110000"', ": not YAML: this number is too large"),
        ('apu: "\\UFFFFFFFF"', ": not YAML: this number is too large"),
        ('apu: "\\ud800"', "1:6: a character that no text may hold"),
        ('holders:\n  terminate: ["a\\0"]', "2:15: a character that no text may hold"),
        (
            'services:\n- name: a\n  active: "/a\\0"\n  stop: /b\n  start: /c',
            "3:11: a character that no text may hold",
        ),
        ('"\\0": 1', "1:1: a character that no text may hold"),
    ],
)
def test_escaped_characters_that_no_text_may_hold_are_mistakes(content: str, mistake: str) -> None:
    mistakes = load.mistakes_in("file", content.encode())

    (only,) = map(str, mistakes)
    assert only.endswith(mistake)


def test_a_long_list_is_cut() -> None:
    (mistake,) = load.mistakes_in("file", b"services: [" + b"{a: b}," * 100 + b"]")
    (nested,) = load.mistakes_in("file", b"apu: [" + b"abcdefgh," * 1000 + b"]")

    assert (len(str(mistake)) < 300, len(str(nested)) < 300) == (True, True)
