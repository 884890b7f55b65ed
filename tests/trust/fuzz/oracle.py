"""What may come of hostile input: a result, or one sentence of a HookError. Nothing else."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from vfio_console_hook.errors import BugError, HookError

from .enclosure import Outside

LIMIT_S = 2.0
# virsh shows one line of it, and no person reads more.
_LONGEST = 4096


@dataclass(frozen=True)
class Finding:
    """Something that must not be. where is the same for findings of one cause."""

    where: str
    text: str


def judge(work: Callable[[bytes], None], data: bytes) -> Finding | None:
    """What is wrong with what work makes of data, or None."""
    began = time.process_time()
    try:
        work(data)
    except BugError as error:
        return Finding(error.text.partition(":")[2], error.trace)
    except HookError as error:
        for sentence in (error.text, error.hint):
            if len(sentence) > _LONGEST:
                return Finding("a long sentence", f"{len(sentence)} characters: {sentence[:200]}")
        if not error.text:
            return Finding("no sentence", type(error).__name__)
    except (Outside, Exception) as error:
        return Finding(_place(error), "".join(traceback.format_exception_only(error)))
    took_s = time.process_time() - began
    if took_s > LIMIT_S:
        return Finding("too slow", f"{took_s:.1f} s")
    return None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "/vfio_console_hook/" in one.filename] or list(frames)[-1:]
    last = ours[-1]
    name = last.filename.rpartition("/")[2]
    return f"{type(error).__name__} in {name}, {last.name}"
