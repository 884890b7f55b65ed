"""Runs one target; see the package. The last line says how much was tried."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HANGS_S = 60


def main(arguments: Sequence[str]) -> int:
    """Fuzz what the command line says; with atheris, libFuzzer ends the process."""
    options = _parse(arguments)
    options.findings.mkdir(parents=True, exist_ok=True)
    atheris: Any = None
    if not options.replay and not options.blind and importlib.util.find_spec("atheris"):
        atheris = importlib.import_module("atheris")
        # What yaml does with a text is part of what we do with it.
        with atheris.instrument_imports(include=["vfio_console_hook", "yaml"]):
            _load_all()
    from .targets import TARGETS

    target = TARGETS[options.target]
    directory = Path(tempfile.mkdtemp(prefix="fuzz-", dir=options.within))
    if atheris is not None:
        _guided(atheris, options, directory)
    from . import blind

    if options.replay:
        tried = blind.replay(target, directory, options.findings, options.replay)
    else:
        tried = blind.search(target, directory, options.findings, options.runs)
    print(f"tried: {tried}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.trust.fuzz")
    parser.add_argument("target")
    parser.add_argument("--findings", type=Path, required=True, help="a directory, made if missing")
    parser.add_argument("--within", help="where to work; a directory in memory is the fastest")
    parser.add_argument("--runs", type=int, default=1000, help="how many inputs; 0 for no end")
    parser.add_argument("--seconds", type=int, default=0, help="how long; 0 for no end")
    parser.add_argument("--blind", action="store_true", help="without atheris")
    parser.add_argument("--replay", type=Path, nargs="*", help="try these files, and nothing else")
    return parser.parse_args(arguments)


def _load_all() -> None:
    """Load every module of the program, for many are loaded late, when it is too late."""
    importlib.import_module("yaml")
    package = importlib.import_module("vfio_console_hook")
    for module in pkgutil.walk_packages(package.__path__, "vfio_console_hook."):
        importlib.import_module(module.name)


def _guided(atheris: Any, options: argparse.Namespace, directory: Path) -> None:
    """Let libFuzzer make the inputs. Does not come back."""
    from .run import Run
    from .targets import TARGETS

    target = TARGETS[options.target]
    run = Run(target, directory, options.findings)
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    words = directory / "words"
    words.write_text("".join(f'"{token}"\n' for token in target.tokens))
    limits = [f"-runs={options.runs or -1}", f"-max_total_time={options.seconds}", "-seed=1"]
    limits += [f"-timeout={_HANGS_S}", f"-max_len={target.longest}", "-len_control=0"]
    files = [f"-dict={words}", f"-artifact_prefix={options.findings}/", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *files], run.one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
