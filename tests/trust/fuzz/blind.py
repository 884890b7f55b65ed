"""The same without atheris: what hypothesis makes of the tokens, or what is in files."""

from __future__ import annotations

from pathlib import Path

from .run import Run
from .targets import Target


def replay(target: Target, directory: Path, findings: Path, files: list[Path]) -> int:
    """Try what is in files; how many there were."""
    run = Run(target, directory, findings)
    for file in files:
        run.one(file.read_bytes())
    return run.tried


def search(target: Target, directory: Path, findings: Path, runs: int) -> int:
    """Try runs inputs, the same ones each time; how many there were."""
    from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
    from hypothesis import strategies as st

    run = Run(target, directory, findings)
    tokens = [one.encode().decode("unicode_escape").encode("latin-1") for one in target.tokens]
    seeds = [*target.seeds()]
    parts = st.one_of(st.sampled_from(tokens), st.binary(max_size=8))

    @seed(1)
    @settings(
        max_examples=runs, database=None, deadline=None, verbosity=Verbosity.quiet,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(seeds), st.lists(st.tuples(st.integers(0, 4096), parts), max_size=6))
    def attempt(start: bytes, changes: list[tuple[int, bytes]]) -> None:
        data = start
        for place, part in changes:
            at = place % (len(data) + 1)
            data = data[:at] + part + data[at + (place & 1) * len(part) :]
        run.one(data)

    attempt()
    return run.tried
