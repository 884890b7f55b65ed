"""The check of what the hook refused last, or failed to do, for each VM."""

from __future__ import annotations

from collections.abc import Iterator

from ...claims.histories import histories
from ..terminal import moment
from .finding import Finding, check, passed, warning
from .system import System


@check("last refusal")
def last_refusal(system: System) -> Iterator[Finding]:
    """The last failure of each VM since the boot, until the same event was done again."""
    failed = False
    for one in histories(system.host):
        refusal = one.refusal
        if refusal is None:
            continue
        failed = True
        title = f"last refusal of {one.vm}"
        text = f"{moment(refusal.time)} {refusal.event}: {refusal.text}"
        done = one.done_since
        if done is not None:
            yield passed(f"{text}; {done.kind} was done at {moment(done.time)}", of=title)
        else:
            advice = refusal.hint or "see `vfio-console-hook status`"
            yield warning(text, advice, of=title)
    if not failed:
        yield passed("this hook has refused nothing since the host was booted")
