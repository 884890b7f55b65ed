"""What plan says before a rehearsal, as far as the rehearsal can find it false."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...claims.step import Step
from ...config.settings import Config
from ...domain import Domain
from ...errors import RefusedError
from ...machine import memory
from ...machine.host import Host
from ..plan import plan as planning
from .rehearsal import Rehearsal, with_tuples


@dataclass(frozen=True)
class Promise:
    """What plan says. steps are counted; loses has a clause for each thing that does not come back.

    bars are the memory BARs that QEMU would map, by address and number. after is what is
    given back, as a clause. loads: a driver of the GPU's own is loaded after it. services has
    the undo of each step that stops one, as JSON.
    """

    steps: int
    bars: tuple[str, ...]
    loses: tuple[str, ...]
    after: str
    loads: bool
    services: tuple[dict[str, Any], ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Promise:
        """What vars() of one gave, through JSON."""
        return cls(**with_tuples(value))

    @property
    def uncertain(self) -> bool:
        """Whether plan only says that something may be lost."""
        return any(" may " in one for one in self.loses)

    @property
    def again(self) -> tuple[Step, ...]:
        """The steps whose services run again afterwards."""
        return tuple(Step.from_json(one) for one in self.services)


def promise_of(host: Host, rehearsal: Rehearsal, who: Domain, config: Config) -> Promise:
    """What plan says now. Raises RefusedError when it refuses, and HostError."""
    plan = planning.plan_for(host, who, config)
    if plan.verdict != planning.START or plan.reason:
        raise RefusedError(plan.reason or "there is nothing to rehearse", plan.hint)
    return promise_in(host, plan, rehearsal.addresses)


def promise_in(host: Host, plan: planning.Plan, addresses: tuple[str, ...]) -> Promise:
    """What a plan promises. Raises HostError."""
    undos = [(step, step.undo) for step in plan.steps if step.undo]
    return Promise(
        steps=len(plan.steps),
        bars=tuple(
            f"BAR {bar.number} of {one}"
            for one in addresses
            for bar in memory.memory_bars(host, one)
        ),
        loses=tuple(dict.fromkeys(step.loses for step in plan.steps if step.loses)),
        after=plan.after,
        loads=any(undo.kind == "load-native" for _, undo in undos),
        services=tuple(step.to_json() for step, undo in undos if undo.services),
    )
