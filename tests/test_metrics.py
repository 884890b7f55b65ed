"""status --prometheus: what a node exporter reads."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli, hook
from vfio_console_hook.claims import history
from vfio_console_hook.commands.status import metrics, overview
from vfio_console_hook.errors import HostError, RefusedError

GPU = "0000:01:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
Capture = pytest.CaptureFixture[str]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# The grammar of prometheus.io/docs/instrumenting/exposition_formats, as strictly as what
# is printed here allows: the reader in Go takes less than the one in Python.
_NAME = "vfio_console_hook_[a-z_]+"
_LABEL = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
_LINE = re.compile(
    rf"# HELP {_NAME} [^\\\n]+|# TYPE {_NAME} gauge|"
    rf"{_NAME}(?:\{{{_LABEL}(?:,{_LABEL})*\}})? [0-9]+(?:\.[0-9]+)?"
)


def read(text: str) -> Samples:
    """All samples of a text, as Prometheus' own parser reads them."""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        assert _LINE.fullmatch(line), line
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            name = sample.name.replace("vfio_console_hook_", "", 1)
            key = (name, frozenset(sample.labels.items()))
            assert key not in found, "two samples with the same labels"
            found[key] = sample.value
    return found


def samples(host: FakeHost) -> Samples:
    return read(metrics.text(overview.current(host)))


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairs.items())


def call(host: FakeHost, event: str) -> int:
    return hook.main(["win11", event, "begin", "-"], domain_xml(GPU, event=event), host)


def test_a_host_without_any_vm_has_no_samples_of_vms(
    machine: MachineFactory, capsys: Capture
) -> None:
    status = cli.main(["--root", machine("efifb-6.12").root, "status", "--prometheus"])

    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert read(out) == {
        ("stale_claims", labels()): 0, ("unreadable_claims", labels()): 0,
        ("stuck_claims", labels()): 0,
        ("console_alive", labels()): 1,
    }  # fmt: skip


def test_a_running_vm_has_its_samples(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    call(host, "prepare")
    FakeLibvirt(host).detach(GPU)
    call(host, "start")
    call(host, "started")

    found = samples(host)

    assert found[("claims", labels(vm="win11", gpu=GPU))] == 1
    assert found[("open_steps", labels(vm="win11"))] == 4
    assert found[("lost_steps", labels(vm="win11"))] == 0
    assert found[("console_alive", labels())] == 0
    for event in ("prepare", "start", "started"):
        assert found[("last_result", labels(vm="win11", event=event))] == 1
        at = found[("last_event_timestamp_seconds", labels(vm="win11", event=event))]
        assert abs(at - host.now()) < 60
        assert 0 < found[("phase_seconds", labels(vm="win11", phase=event))] < 30


def test_losses_until_the_next_boot_are_counted(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    call(host, "prepare")
    before = samples(host)[("lost_steps", labels(vm="win11"))]
    FakeLibvirt(host).detach(GPU)

    assert (before, samples(host)[("lost_steps", labels(vm="win11"))]) == (0, 1)


def test_a_failure_is_0_until_the_next_success(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    results = []
    for error in (None, RefusedError("no"), None):
        history.remember(host, "win11", UUID, "prepare", took_s=0.25, error=error)
        results.append(samples(host)[("last_result", labels(vm="win11", event="prepare"))])

    assert results == [1, 0, 1]


def test_a_stale_claim_holds_nothing_and_is_counted(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    call(host, "prepare")
    host.boot_again()
    host.tree.put(f"run/vfio-console-hook/claims/{OTHER_UUID}", "garbage")

    found = samples(host)

    assert (found[("stale_claims", labels())], found[("unreadable_claims", labels())]) == (1, 1)
    assert not [name for name, _ in found if name in ("claims", "open_steps")]


@pytest.mark.parametrize(
    "name",
    [
        '"',
        "\\",
        "\n",
        '\\"',
        "\\n",
        "a\nb{c}=1",
        "Gerät",
        "",
        "x 7\nvfio_console_hook_stale_claims 9",
    ],
)
def test_a_name_fakes_no_sample(machine: MachineFactory, name: str) -> None:
    host = machine("efifb-6.12")
    history.remember(host, name, UUID, "prepare", took_s=0.25)

    found = samples(host)

    assert found[("phase_seconds", labels(vm=name, phase="prepare"))] == 0.25
    assert found[("stale_claims", labels())] == 0


def test_a_name_that_is_not_utf8_spoils_nothing(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    history.remember(host, "a\udcff", UUID, "prepare", took_s=0.25)

    assert samples(host)[("phase_seconds", labels(vm="a?", phase="prepare"))] == 0.25


def test_the_later_event_of_two_vms_of_one_name_counts(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    history.remember(host, "win11", OTHER_UUID, "prepare", took_s=1)
    history.remember(host, "win11", UUID, "prepare", took_s=2)

    assert samples(host)[("phase_seconds", labels(vm="win11", phase="prepare"))] == 2


def test_without_the_right_to_read_claims_they_are_not_counted(machine: MachineFactory) -> None:
    class WithoutClaims(FakeHost):
        def list(self, path: str) -> tuple[str, ...]:
            if path.endswith("claims"):
                raise HostError("cannot list: Permission denied")
            return super().list(path)

    host = machine("efifb-6.12")
    call(host, "prepare")

    found = samples(WithoutClaims(host.root))

    assert not [name for name, _ in found if "claims" in name or "steps" in name]
    assert ("console_alive", labels()) in found
