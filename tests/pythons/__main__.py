"""The command line; `tests/pythons/run --help`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.gate import ROOT
from tests.lab import images
from tests.lab.cache import BuildError, Cache, default_root
from tests.lab.debian import Suite, require_tools
from tests.packages.roots import Root, make, mounted

from . import __doc__ as manual

SUITES = {
    "3.9": "bullseye",
    "3.11": "bookworm",
    "3.13": "trixie",
    "3.14": "forky",
    "3.15": "forky",
}
BUSYBOX = "busybox"
OF_BUSYBOX = ("3.13", "test_gate", "test_hook", "test_install", "test_demo", "test_services")
"""The Python beside busybox, and the tests that start programs of the host."""
# sh, awk, modprobe and whatever else busybox has is busybox's, and there is no other awk.
_ONLY_BUSYBOX = """
for name in $(busybox --list); do
    for directory in /usr/bin /usr/sbin; do
        case $name in mount | umount | busybox) continue ;; esac
        [ ! -e $directory/$name ] || busybox ln -sf /usr/bin/busybox $directory/$name
    done
done
busybox rm -f /usr/bin/mawk /usr/bin/gawk /usr/bin/original-awk
"""
# What tests/set-up installs, but for linters; the hook's own Python is the release's python3.
PROGRAMS = (
    "python3", "python3-lxml", "python3-yaml", "dash", "busybox", "gawk", "original-awk", "mawk",
    "git", "zsh", "fish", "mandoc", "man-db", "procps", "mount", "kmod", "systemd", "shellcheck",
    "e2fsprogs",
)  # fmt: skip
# Tools that are older in Debian 11 than the tests know them; without them those tests are skipped.
TOO_OLD = {"bullseye": ("fish", "original-awk", "shellcheck", "busybox")}
# Its systemd does not know all that the units say, and says so.
SYSTEMD = "tests/test_install.py::test_systemd_has_no_objection_to_the_units"
# Its /bin is not /usr/bin.
_MERGE = "for one in /bin/*; do [ -e /usr$one ] || ln -s $one /usr$one; done"
WHEELS = ("lxml", "PyYAML", "pytest", "pytest-xdist", "hypothesis", "prometheus-client", "coverage")
# pip takes what these depend on by its own Python, and older ones need more.
ALSO = ("exceptiongroup", "tomli", "typing_extensions", "sortedcontainers")
# libvirt-python is no wheel, and is built against one libvirt.
NEED_LIBVIRT = (
    "tests/test_host.py",
    "tests/test_vms.py",
    "tests/test_cli.py::test_plan_of_a_vm_asks_libvirt_for_its_xml",
    "tests/test_cli.py::test_plan_of_a_vm_reports_that_it_has_its_gpu_already",
    "tests/test_cli.py::test_plan_of_an_unknown_vm_lists_the_vms_of_libvirt",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")

# Set in the process that has a mount namespace of its own.
_INSIDE = "VFIO_CONSOLE_HOOK_PYTHONS_INSIDE"


def main(argv: Sequence[str]) -> int:
    """Run the command line; the exit status."""
    ours, _, theirs = (list(part) for part in _split(argv))
    if any(one in ("-h", "--help") for one in ours):
        print(manual)
        return 0
    unknown = [one for one in ours if one not in (*SUITES, BUSYBOX)]
    if unknown or os.geteuid() != 0:
        print(f"unknown: {' '.join(unknown)}" if unknown else "only root can mount a root")
        return 2
    if _INSIDE not in os.environ:
        words = ["unshare", "--mount", "--propagation", "private", sys.executable]
        environment = {**os.environ, _INSIDE: "1"}
        os.execvpe("unshare", [*words, "-m", "tests.pythons", *argv], environment)
    try:
        require_tools(own_kernels=False)
        cache = Cache(default_root())
        return max([_run(cache, one, theirs) for one in ours or SUITES])
    except BuildError as error:
        print(f"tests/pythons: {error}", file=sys.stderr)
        return 2


def _split(argv: Sequence[str]) -> tuple[Sequence[str], str, Sequence[str]]:
    if "--" not in argv:
        return argv, "", ()
    place = list(argv).index("--")
    return argv[:place], "--", argv[place + 1 :]


def _run(cache: Cache, name: str, options: Sequence[str]) -> int:
    """Run the tests with one Python, or with busybox; 0 if all passed."""
    python = name
    if name == BUSYBOX:
        python, *tests = OF_BUSYBOX
        options = [*(f"tests/{one}.py" for one in tests), *options]
    out = cache.root / "results/pythons"
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{name}.log"
    log.write_text("")
    older = [SYSTEMD] if SUITES[python] in TOO_OLD else []
    left_out = [
        f"--deselect={one}" if "::" in one else f"--ignore={one}"
        for one in (*NEED_LIBVIRT, *older)
    ]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        image = _image(cache, python)
        with mounted(image, Path(work) / "root", log) as root:
            _set_up(root, python)
            if older:
                root.shell(_MERGE)
            if name == BUSYBOX:
                root.shell(_ONLY_BUSYBOX)
            answer = root.shell(
                "unset PYTHONUNBUFFERED; mount -t tmpfs -o mode=1777 shm /dev/shm;"
                " mkdir -p /dev/pts;"
                " mount -t devpts -o newinstance,ptmxmode=0666 pts /dev/pts;"
                " ln -sf pts/ptmx /dev/ptmx; cd /clone && REQUIRE_TOOLS= exec /venv/bin/python"
                f" -m pytest -q --numprocesses=auto -p no:cacheprovider {' '.join(left_out)}"
                f" {' '.join(options)}"
            )
    lines = answer.text.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print(f"{name}: {lines[-1] if lines else ''} ({time.monotonic() - began:.0f} s)", flush=True)
    for line in failures:
        print(f"    {line}")
    print(f"    {log}", flush=True)
    return 1 if answer.status else 0


def _image(cache: Cache, python: str) -> Path:
    suite = Suite(cache, SUITES[python])
    older = TOO_OLD.get(suite.name, ())
    programs = [one for one in PROGRAMS if one not in older]
    packages = [*programs, f"python{python}", f"python{python}-venv"]
    recipe = {"suite": suite.name, "packages": suite.versions(packages)}
    options = ("--variant=minbase", f"--include={','.join(packages)}")
    return make(cache, f"python-{python}", recipe, suite, options)


def _set_up(root: Root, python: str) -> None:
    """A virtual environment with the wheels for this Python, and a clone of the working tree."""
    made = root.shell(f"python{python} -m venv --without-pip /venv")
    if made.status:
        raise BuildError(f"Python {python} makes no virtual environment: {made.text.strip()}")
    target = root.top / f"venv/lib/python{python}/site-packages"
    also = ALSO if python == "3.9" else ALSO[-1:]
    # Not pip install: with a target it takes releases that this Python cannot run.
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    fitting = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    fitting += [f"--platform={one}" for one in PLATFORMS]
    with tempfile.TemporaryDirectory() as wheels:
        done = subprocess.run(
            [*pip, *fitting, f"--dest={wheels}", *WHEELS, *also], capture_output=True, text=True
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1]
            raise BuildError(f"no wheels for Python {python}: {last}")
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(target)  # noqa: S202  (wheels, which pip would unpack, too)
    with tarfile.open(fileobj=io.BytesIO(images.program(ROOT))) as tar:
        tar.extractall(root.top / "clone")  # noqa: S202  (our own working tree)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
