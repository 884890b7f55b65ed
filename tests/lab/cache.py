"""The cache of builds: directories named after their recipe.

A recipe is a JSON value with everything that the result depends on: package
versions, digests of the files that go in, our own scripts. The same recipe is
never built twice; another recipe is another directory. This module does not know
what is built.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MANIFEST = "manifest.json"
UNUSED_AFTER_S = 3 * 24 * 3600


class BuildError(Exception):
    """Something that the lab needs could not be built; the text has the remedy."""


def default_root() -> Path:
    """The cache directory, outside of the repository, after the XDG rule."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "vfio-console-hook-lab"


def sha256(path: Path) -> str:
    """The digest of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def command(
    argv: Sequence[str | Path], *, log: Path, cwd: Path | None = None, stdin: Path | None = None
) -> None:
    """Run a command with its output appended to a log.

    Raises BuildError with the end of the log when it fails.
    """
    words = [str(word) for word in argv]
    with log.open("ab") as output, contextlib.ExitStack() as stack:
        source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        status = subprocess.call(words, cwd=cwd, stdin=source, stdout=output, stderr=output)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BuildError(f"{words[0]} failed with status {status}; the end of {log}:\n{tail}")


class Cache:
    """A directory of finished builds, safe for several labs at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("builds", "logs", "apt"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def find(self, name: str, recipe: object) -> Path | None:
        """The finished directory of this recipe, if it was built before."""
        path = self._directory(name, recipe)
        return path if (path / MANIFEST).exists() else None

    def build(self, name: str, recipe: object, make: Callable[[Path, Path], None]) -> Path:
        """The directory for this recipe, filled by `make(directory, log)` unless it is there.

        The directory gets its name at the end, so a later run cannot mistake a failed
        build for a finished one.
        """
        with self.locked(name):
            done = self.find(name, recipe)
            if done:
                (done / MANIFEST).touch()
                return done
            final = self._directory(name, recipe)
            partial = final.with_name(final.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            partial.mkdir()
            log = self.root / "logs" / f"{name}.log"
            log.write_bytes(b"")
            began = time.monotonic()
            print(f"building {name} (log: {log})", flush=True)
            make(partial, log)
            files = {p.name: sha256(p) for p in sorted(partial.iterdir()) if p.is_file()}
            manifest = {"recipe": recipe, "sha256": files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            partial.rename(final)
            print(f"built {name} in {time.monotonic() - began:.0f} s", flush=True)
            self._prune(name, final)
            return final

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Lock builds of that name against other labs and threads."""
        with (self.root / "builds" / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _directory(self, name: str, recipe: object) -> Path:
        text = json.dumps(recipe, sort_keys=True)
        return self.root / "builds" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _prune(self, name: str, keep: Path) -> None:
        # The key is the last word, so efifb-x is never confused with efifb.
        for path in (self.root / "builds").iterdir():
            manifest = path / MANIFEST
            if path == keep or path.name.rpartition("-")[0] != name or not manifest.exists():
                continue
            if time.time() - manifest.stat().st_mtime > UNUSED_AFTER_S:
                shutil.rmtree(path)
