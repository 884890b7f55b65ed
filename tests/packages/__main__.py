"""The command line; `tests/packages/run --help`."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import images
from tests.lab.cache import BuildError, Cache, default_root
from tests.lab.debian import require_tools

from . import __doc__ as manual
from . import roots, versions
from .trials import TRIALS, Trial, run

# Set in the process that has a mount namespace of its own.
_INSIDE = "VFIO_CONSOLE_HOOK_PACKAGES_INSIDE"


def main(argv: Sequence[str]) -> int:
    """Run the command line; the exit status."""
    options = _parse(argv)
    if options.list:
        for trial in TRIALS:
            print(f"{trial.name:24} {trial.do.__doc__}")
        return 0
    if os.geteuid() != 0:
        print("only root can mount a root", file=sys.stderr)
        return 2
    if _INSIDE not in os.environ:
        words = ["unshare", "--mount", "--propagation", "private", sys.executable]
        environment = {**os.environ, _INSIDE: "1"}
        os.execvpe("unshare", [*words, "-m", "tests.packages", *argv], environment)
    chosen = [one for one in TRIALS if one.name in options.trials] or [
        one for one in TRIALS if one.quick or not options.quick
    ]
    try:
        require_tools(own_kernels=False)
        return _run_all(chosen, Cache(options.cache), options.out)
    except BuildError as error:
        print(f"tests/packages: {error}", file=sys.stderr)
        return 2


def _run_all(trials: Sequence[Trial], cache: Cache, out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        packages = versions.build(work, {trial.manager.kind for trial in trials})
        for trial in trials:
            began = time.monotonic()
            log = out / f"{trial.name}.log"
            log.write_text("")
            with roots.mounted(_image(cache, trial.root), work / "root", log) as root:
                reason = run(trial, functools.partial(trial.manager, root), packages)
            seconds = time.monotonic() - began
            outcome = "FAILED" if reason else "passed"
            print(f"{trial.name:24} {outcome} {seconds:5.0f} s", flush=True)
            if reason:
                print(f"    {reason}\n    {log}", flush=True)
                failed += 1
    print(f"{len(trials) - failed} of {len(trials)} trials passed")
    return 1 if failed else 0


def _image(cache: Cache, root: str) -> Path:
    if root == "managers":
        return roots.managers(cache)
    kind, _, suite = root.rpartition("-")
    return roots.small(cache, suite) if kind else images.root(cache, suite)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/packages/run",
        description=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [trial.name for trial in TRIALS]
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help="only these")
    parser.add_argument("--quick", action="store_true", help="what continuous integration runs")
    parser.add_argument("--list", action="store_true", help="print the trials")
    cache = default_root()
    parser.add_argument("--cache", type=Path, default=cache, help="the lab's cache")
    parser.add_argument("--out", type=Path, default=cache / "results/packages", help="for logs")
    options = parser.parse_args(argv)
    unknown = [name for name in options.trials if name not in names]
    if unknown:
        parser.error(f"there is no trial {unknown[0]}; see --list")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
