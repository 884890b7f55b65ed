"""The VM's start and stop are rehearsed, and then happen: the verdict and the start must agree.

A rehearsal leaves the whole machine as it was, by the comparison of the other promises, or
without what plan has listed. While the GPU is away the monitor is dark, and the memory that is
mapped is the same that QEMU maps later.
"""

from __future__ import annotations

import re
import time

from . import monitors, phases, predicted, service
from .background import Background
from .machine import Answer, LostMachine, Machine
from .monitors import OTHER_TEXT, TEXT
from .scenarios import After
from .trial import DOMAIN_FILE, LOOK, Trial

# A slow machine takes that long for the looks and pictures meanwhile.
SECONDS = 25
REHEARSE = f"vfio-console-hook rehearse --yes --seconds {SECONDS} --xml {DOMAIN_FILE}"
# For pkill -f: the command itself, and not the shell whose line has this pattern.
_COMMAND = "/usr/bin/[v]fio-console-hook rehearse --yes"
AGREES = "all was as plan had said"
DIARY = "/run/vfio-console-hook/rehearsals"
# Where the areas of vfio's files are in a process: offset and length of each.
_MAPPED = "for p in /proc/[0-9]*; do grep -H vfio $p/maps 2>/dev/null; done"
# vfio-pci is loaded by the first rehearsal, and stays; closing a function switches bus mastering
# off, which the firmware had on (vfio_pci_core_disable, pci_clear_master), and leaves a known
# power state (pci_set_power_state). So does a VM.
_ONCE = re.compile(r"vfio|/(config|power_state) = ")
_AREA = re.compile(r"maps:([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) .*vfio")


def runner(machine: Machine) -> str:
    """The process id of the runner of a rehearsal."""
    found = machine.run(f"grep -ho '\"runner\": .[0-9]*' {DIARY}/* | tr -dc '0-9\\n'")
    return found.stdout.split()[0]


class Rehearsed(Trial):
    """A rehearsal before each cycle of the VM."""

    def run(self) -> None:
        """Set up, rehearse beside a holder in vain, then rehearse and start in turn."""
        if not self.set_up():
            return
        if self.scenario.holder:
            self.scenario.holder.begin(self.machine)
            self.refused_rehearsal()
            self.scenario.holder.end(self.machine)
        for number in range(1, self.scenario.cycles + 1):
            name = f"rehearsal{number}"
            self.machine.note(name)
            self.mark(name)
            areas = self.rehearsal(name, first=number == 1)
            self.cycle(number)
            self.demand(
                bool(areas) and areas == self.areas,
                f"{name}: mapped {sorted(areas)}, but QEMU {sorted(self.areas)}",
            )

    areas: frozenset[tuple[int, int]] = frozenset()
    """Offset and length of what QEMU has mapped of vfio's files in this cycle."""

    def meanwhile(self, name: str, number: int) -> None:
        """Keep what QEMU has mapped."""
        self.areas = self.mapped_areas()

    def mapped_areas(self) -> frozenset[tuple[int, int]]:
        """Offset and length of all areas of vfio's files that any process has mapped."""
        found = _AREA.findall(self.machine.run(_MAPPED).stdout)
        return frozenset((int(at, 16), int(end, 16) - int(first, 16)) for first, end, at in found)

    def refused_rehearsal(self) -> None:
        """Beside the holder a rehearsal is refused as the VM is, and nothing changes."""
        name = "refused-rehearsal"
        self.machine.note(name)
        self.mark(name)
        before = phases.now(self.machine)
        answer = self.machine.run(REHEARSE, 120)
        text = answer.stdout + answer.stderr
        self.demand(answer.status == 1, f"{name}: status {answer.status}")
        self.demand(
            bool(re.search(self.scenario.refused, text)),
            f"{name}: no /{self.scenario.refused}/ in {text}",
        )
        error = self.start() or "nothing, the VM started"
        self.demand(
            bool(re.search(self.scenario.refused, error)),
            f"{name}: the VM's error has no /{self.scenario.refused}/: {error}",
        )
        difference = predicted.difference(before, phases.now(self.machine))
        self.demand(not difference, f"{name}: the machine changed:\n{difference}")
        self.check_claims(name)

    def rehearsal(self, name: str, *, first: bool = True) -> frozenset[tuple[int, int]]:
        """One whole rehearsal with all checks; what was mapped in it."""
        lost = self.scenario.after is After.GONE
        other = self.photograph(f"{name}-other-before", OTHER_TEXT)[self.scenario.monitor]
        lit = self.photograph(f"{name}-before", TEXT)[self.scenario.monitor]
        shown = monitors.alive(other, lit)  # or a loss was announced, and is there
        before = phases.now(self.machine)
        began = time.monotonic()
        running = self.begun(name, '"opened"')
        areas = self.mapped_areas()
        away = self.photograph(f"{name}-during", OTHER_TEXT)[self.scenario.monitor]
        self.machine.run(f"{LOOK}; vfio-console-hook status")
        answer = running.wait(180)
        self.report(f"{name}: {time.monotonic() - began:.0f} s")
        self.demand(answer.ok, f"{name}: status {answer.status}: {answer.stdout}")
        self.demand(AGREES in answer.stdout, f"{name}: no {AGREES!r}")
        (self.directory / f"{name}.txt").write_text(answer.stdout)
        # QEMU's cards keep their last picture where nothing draws on them.
        drawn = shown and monitors.same(other, away)
        self.demand(not drawn, f"{name}: the host draws on a GPU that is away")
        self.check_left(name)
        difference = predicted.difference(before, phases.now(self.machine))
        if first:
            difference = "\n".join(one for one in difference.splitlines() if not _ONCE.search(one))
        if not lost or not first:
            self.demand(not difference, f"{name}: the machine changed:\n{difference}")
        self.check_console(name, 0)
        self.check_kernel(name)
        return areas

    def begun(self, name: str, moment: str, command: str = REHEARSE) -> Background:
        """A rehearsal that has come to a moment."""
        self.machine.run(f"rm -rf {DIARY}")
        running = Background(self.machine, command, name)
        self.await_diary(name, moment)
        return running

    def await_diary(self, name: str, text: str) -> None:
        """Wait until the last diary has a text."""
        last = f"$(ls -t {DIARY}/* 2>/dev/null | head -n 1)"
        tries = "n=$((n + 1)); [ $n -lt 240 ] || exit 1; sleep 0.25"
        found = f"grep -q '{text}' {last} /dev/null"
        answer = self.machine.run(f"n=0; until {found}; do {tries}; done", 120)
        if not self.demand(answer.ok, f"{name}: no {text} in the diary"):
            self.machine.run(f"ls -l --full-time {DIARY}; cat {DIARY}/*; date; cat /run/lab-*.out")

    def check_left(self, name: str) -> None:
        """No claim, no process and no unit of a rehearsal is left."""
        units = "systemctl list-units --all --no-legend 'vfio-console-hook-rehearsal*'"
        gone = f'n=0; while [ -n "$({units})" ]; do n=$((n + 1)); [ $n -lt 60 ] || exit 1;'
        left = self.machine.run(f"{gone} sleep 0.5; done; {units}", 60)
        self.demand(left.ok, f"{name}: units are left: {self.machine.run(units).stdout}")
        self.check_claims(name)

    def report(self, text: str) -> None:
        """Add a note to the result and to the transcript."""
        self.result.notes.append(text)
        self.machine.note(text)


class RehearsedCell(Rehearsed):
    """A cell of the matrix: the verdict of one rehearsal, and the VM's start after it."""

    def run(self) -> None:
        """Rehearse, then start and destroy the VM."""
        if not self.set_up():
            return
        self.mark("rehearsal")
        answer = self.machine.run(REHEARSE, 400)
        (self.directory / "rehearsal.txt").write_text(answer.stdout + answer.stderr)
        agrees = answer.ok and AGREES in answer.stdout
        refused = "nothing was rehearsed" in answer.stderr
        self.demand(agrees or refused, f"the rehearsal: {answer.stdout}{answer.stderr}")
        self.check_left("rehearsal")
        error = self.start()
        self.report(f"{'agrees' if agrees else 'refused'}; start: {error or 'runs'}")
        self.demand((error is None) is agrees, "verdict and start do not agree")
        if error is None:
            time.sleep(4)
            self.check_running("the VM")
            self.machine.run("virsh destroy gpu", 120)
        self.check_kernel("the VM")
        self.check_claims("the VM")


class RehearsalKilled(Rehearsed):
    """A rehearsal is killed or left alone at every phase; the host comes back by itself."""

    def run(self) -> None:
        """Set up, then one case after the other, and a real start in the end."""
        self.machine.live_longer(1500)
        if not self.set_up():
            return
        service.start(self.machine, 1)
        self.rehearsal("whole")
        for case in (
            self.runner_killed_while_it_has_the_gpu,
            self.runner_hangs,
            self.both_killed_then_a_start,
            self.session_taken_along,
            self.a_race_with_a_start,
            self.terminal_gone,
            self.ctrl_c,
            self.a_vm_starts_meanwhile,
            self.libvirtd_restarted,
            self.runner_killed_while_giving_back,
            self.runner_killed_while_taking,
            self.watchdog_killed,
            self.both_killed_then_recover,
        ):
            name = case.__name__.replace("_", "-")
            self.machine.note(name)
            self.mark(name)
            self.write(TEXT)
            before = phases.now(self.machine)
            case(name)
            self.check_left(name)
            difference = predicted.difference(before, phases.now(self.machine))
            self.demand(not difference, f"{name}: the machine changed:\n{difference}")
            self.check_console(name, 0)
            self.check_kernel(name)
        self.cycle(1)
        self.rebooted()

    # the runner

    def runner_killed_while_taking(self, name: str) -> None:
        """A service that stops slowly is waited for at that moment."""
        service.start(self.machine, 6)
        self.killed(name, "taking")
        service.start(self.machine, 1)

    def runner_killed_while_it_has_the_gpu(self, name: str) -> None:
        """The functions are open."""
        self.killed(name, '"opened"')

    def runner_killed_while_giving_back(self, name: str) -> None:
        """Giving back has begun."""
        self.killed(name, "giving back")

    def killed(self, name: str, moment: str) -> None:
        """The runner gets SIGKILL at a moment: the unit's ExecStopPost gives back at once."""
        running = self.begun(name, moment)
        began = time.monotonic()
        self.machine.run(f"kill -KILL {self.runner()}")
        self.cut_short(name, running, "its process was killed")
        self.report(f"{name}: ended after {time.monotonic() - began:.0f} s")

    def runner_hangs(self, name: str) -> None:
        """Nothing of the runner goes on; the timer gives back by the announced time."""
        running = self.begun(name, '"opened"')
        self.machine.run(f"kill -STOP {self.runner()}")
        answer = self.cut_short(name, running, "it hung, and was killed")
        self.in_time(name, answer)

    def in_time(self, name: str, answer: Answer) -> None:
        """All ended by the announced time of day."""
        # Before it asks, and when it begins.
        announced = re.findall(r"at (\d\d:\d\d:\d\d) everything is back", answer.stdout)
        now = self.machine.run("date +%H:%M:%S").stdout.strip()
        self.demand(now <= max(announced), f"{name}: it is {now}: {answer.stdout}")
        self.report(f"{name}: announced {announced}, over at {now}")

    def runner(self) -> str:
        """The process id of the runner."""
        return runner(self.machine)

    def cut_short(self, name: str, running: Background, why: str) -> Answer:
        """The command ends with status 1 and says why."""
        answer = running.wait(180)
        self.demand(answer.status == 1, f"{name}: status {answer.status}: {answer.stdout}")
        said = f"cut short: {why}"
        self.demand(said in answer.stdout, f"{name}: no {said!r}: {answer.stdout}")
        return answer

    # the watchdog

    def watchdog_killed(self, name: str) -> None:
        """Without its timer the rehearsal goes on to its end."""
        running = self.begun(name, '"opened"')
        self.stop_timer()
        answer = running.wait(120)
        self.demand(answer.ok and AGREES in answer.stdout, f"{name}: {answer.stdout}")

    def stop_timer(self) -> None:
        """End the timer of the watchdog."""
        self.machine.run("systemctl stop 'vfio-console-hook-rehearsal*.timer'")

    def both_killed(self, name: str) -> None:
        """Neither timer nor runner is left, and the unit does not start the watchdog either."""
        self.begun(name, '"opened"')
        self.stop_timer()
        post = "/root/never"
        # Nothing else can keep ExecStopPost from running than the loss of the program.
        self.machine.run(f"mv /usr/bin/vfio-console-hook {post}; kill -KILL {self.runner()}")
        self.machine.run("sleep 2")
        self.machine.run(f"mv {post} /usr/bin/vfio-console-hook")
        shown = self.machine.run("vfio-console-hook status")
        self.demand(shown.status == 1, f"{name}: status: {shown.stdout}")
        self.demand("its rehearsal was killed" in shown.stdout, f"{name}: {shown.stdout}")
        self.machine.run(f"pkill -f '{_COMMAND}'; rm -rf {DIARY}")

    def both_killed_then_recover(self, name: str) -> None:
        """recover gives back what is left."""
        self.both_killed(name)
        answer = self.machine.run("vfio-console-hook recover", 90)
        self.demand(answer.ok, f"{name}: recover: {answer.stdout}{answer.stderr}")

    def both_killed_then_a_start(self, name: str) -> None:
        """The next start of the VM gives back what is left, and takes it itself."""
        self.both_killed(name)
        error = self.start()
        if self.demand(error is None, f"{name}: virsh start: {error}"):
            time.sleep(4)
            self.check_running(name)
            self.machine.run("virsh destroy gpu", 120)

    # who has begun it

    def ctrl_c(self, name: str) -> None:
        """SIGINT of the command gives back at once."""
        # A shell lets what runs in the background ignore it.
        running = self.begun(name, '"opened"', f"env --default-signal=INT {REHEARSE}")
        self.machine.run(f"pkill -INT -f '{_COMMAND}'")
        answer = running.wait(60)
        self.demand(answer.status == 130, f"{name}: status {answer.status}: {answer.stdout}")

    def terminal_gone(self, name: str) -> None:
        """The command, its shell and their session are killed, as with a lost ssh connection."""
        self.begun(name, '"opened"')
        self.machine.run(f"pkill -KILL -f '{_COMMAND}'")
        self.ends_alone(name)

    def session_taken_along(self, name: str) -> None:
        """The scope of the caller's session is stopped with the service that the VM stops."""
        scope = "systemd-run --quiet --scope --unit=lab-session"
        along = f"--property=PartOf={service.UNIT}.service"
        self.begun(name, '"opened"', f"{scope} {along} {REHEARSE}")
        state = self.machine.run("systemctl is-active lab-session.scope").stdout.strip()
        self.demand(state != "active", f"{name}: the session is {state}")
        self.ends_alone(name)

    def ends_alone(self, name: str) -> None:
        """Nobody follows the rehearsal, and it comes to its end."""
        self.await_diary(name, '"end": ""')

    # others

    def libvirtd_restarted(self, name: str) -> None:
        """recover runs then, and leaves the rehearsal alone."""
        running = self.begun(name, '"opened"')
        self.machine.run("systemctl restart libvirtd", 60)
        answer = running.wait(120)
        self.demand(answer.ok and AGREES in answer.stdout, f"{name}: {answer.stdout}")
        self.machine.run("until timeout 10 virsh -q list --all; do sleep 1; done", 60)

    def a_vm_starts_meanwhile(self, name: str) -> None:
        """It is refused with the time at which the rehearsal ends; another rehearsal as well."""
        running = self.begun(name, '"opened"')
        error = self.start() or "nothing, it started"
        self.demand("is in a rehearsal of gpu" in error, f"{name}: virsh start: {error}")
        again = self.machine.run(REHEARSE, 60)
        self.demand(again.status == 1, f"{name}: another one: {again.stdout}")
        answer = running.wait(120)
        self.demand(answer.ok and AGREES in answer.stdout, f"{name}: {answer.stdout}")

    def a_race_with_a_start(self, name: str) -> None:
        """Both begin at once: one of them has the GPU, the other is refused."""
        running = Background(self.machine, REHEARSE, "racing")
        error = self.start()
        answer = running.wait(120)
        one = (error is None) is not answer.ok
        self.demand(one, f"{name}: start: {error}; rehearsal: {answer.stdout}")
        self.report(f"{name}: the {'VM' if error is None else 'rehearsal'} had it")
        if error is None:
            self.check_running(name)
            self.machine.run("virsh destroy gpu", 120)

    def rebooted(self) -> None:
        """The host goes down in the middle of a rehearsal: it is given back before that."""
        name = "rebooted"
        self.machine.note(name)
        self.begun(name, '"opened"')
        self.keep_logs()
        began = time.monotonic()
        try:
            self.machine.run("systemctl --no-block reboot; sleep 100", 110)
            self.demand(False, f"{name}: the host did not go down")
        except LostMachine:
            self.report(f"{name}: down after {time.monotonic() - began:.0f} s")
        log = (self.directory / "serial.log").read_text(errors="replace")
        self.demand("BUG:" not in log and "Oops" not in log, f"{name}: a fault, see serial.log")
