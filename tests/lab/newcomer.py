"""A newcomer at a terminal: the commands, their screens, and demands on what is readable.

All commands are typed into a terminal of 80 columns. The screens are kept as files with
the results, in this order; session.txt has the whole session, for people to read.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .background import Background
from .holder import Holder
from .tmux import ESCAPE, Screen, Terminal, slug
from .trial import CONFIG_FILE, HOOK, Trial
from .vm import domain_xml

US = "vfio-console-hook"
MACHINE_FILE = "/root/machine.txt"
BUSY = "busy"
BUSY_UUID = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a03"
BUSY_S = 45
# A VM without devices, whose start keeps libvirt busy.
BUSY_XML = f"""<domain type='qemu'>
<name>{BUSY}</name>
<uuid>{BUSY_UUID}</uuid>
<memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
</domain>
"""
# A VM full of private data, none of which may be in a bug report.
SECRETS = ("alice", "hunter2", "52:54:00:ab:cd:ef", "S3CR3T-SERIAL", "diary")
PRIVATE_XML = """<domain type='qemu'>
<name>diary</name>
<uuid>6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a04</uuid>
<title>Diary of alice</title>
<description>hunter2</description>
<memory unit='MiB'>16</memory>
<sysinfo type='smbios'><system><entry name='serial'>S3CR3T-SERIAL</entry></system></sysinfo>
<os><type arch='x86_64' machine='q35'>hvm</type><smbios mode='sysinfo'/></os>
<devices>
<disk type='file' device='disk'><source file='/srv/alice/diary.img'/>
<target dev='vda' bus='virtio'/><serial>S3CR3T-SERIAL</serial></disk>
<interface type='user'><mac address='52:54:00:ab:cd:ef'/></interface>
<graphics type='vnc' passwd='hunter2'/>
{hostdevs}
</devices>
</domain>
"""
SLOW_HOOK = f"{HOOK}.d/10-slow"
_SLOW_HOOK = f"""#!/bin/sh
[ "$1 $2" != "{BUSY} prepare" ] || sleep {BUSY_S}
""".encode()
# The program waits 10 s for libvirt; the rest is for an emulated CPU beside another machine.
ANSWERS_WITHIN_S = 25
# An emulated CPU takes ten times as long as a real one.
COMES_BACK_WITHIN_S = 60
LOG_LINES = 10
# Lines for copying may be wider than the terminal: shell lines, and positions in files.
TO_COPY = re.compile(r"\s*(?:# |echo |for |printf |setpci |modprobe |/\S+\.yaml:\d+:\d+: )")
MISTAKES = b"""keep_consol: never
holders:
  wait_s: soon
"""


class Newcomer(Trial):
    """Inspects the host before, during and after one run of the VM; then makes mistakes."""

    def run(self) -> None:
        """Run all parts in the order of a newcomer."""
        if not self.set_up():
            return
        self.terminal = Terminal(self.machine)
        self.typed = 0
        self.first_look()
        self.one_run()
        self.refusal()
        self.bug_report()
        self.mistakes()
        self.manual()
        self.without_root()
        self.pipes()
        self.busy_libvirt()

    # The story

    def first_look(self) -> None:
        """Inspect the host before the first start."""
        self.type(US, 2)
        self.type(f"{US} --help")
        self.type(f"{US} doctor", (0, 1))
        plan = self.type(f"{US} plan gpu")
        self.shows(plan, *(gpu.address for gpu in self.leaving))
        self.type(f"{US} plan gpu --svg /root/gpu.svg")
        picture = self.machine.get("/root/gpu.svg")
        if self.demand(picture is not None, "plan --svg wrote no file") and picture:
            (self.directory / "gpu.svg").write_bytes(picture)
        self.type(f"{US} plan gqu", 1)
        self.type(f"{US} status")
        self.record("before")
        self.check_commands("before")

    def one_run(self) -> None:
        """plan, start, status, destroy, status, doctor."""
        self.mark("one run")
        planned = self.json(f"{US} plan gpu --json")
        since = self.machine.run("date +@%s").stdout.strip()
        self.type("virsh start gpu")
        running = self.type(f"{US} status")
        self.shows(running, "gpu", *(gpu.address for gpu in self.leaving))
        held = self.json(f"{US} status --json")
        self.keep("status.json", json.dumps(held, indent=1))
        self.keep("plan.json", json.dumps(planned, indent=1))
        self.check_same_steps(planned, held)
        self.type(f"{US} status --prometheus")
        self.type(f"{US} plan gpu", (0, 1, 2))
        self.type(f"{US} doctor", (0, 1))
        self.record("during")
        self.check_commands("during")
        self.type("virsh destroy gpu")
        after = self.type(f"{US} status")
        self.demand("no VM holds a GPU" in after.whole, "after the run status lists a VM")
        self.demand(not vms(self.json(f"{US} status --json")), "after the run a VM holds a GPU")
        self.type(f"{US} doctor", (0, 1))
        self.check_console("one run", 0)
        self.check_kernel("one run")
        self.check_log(since)

    def refusal(self) -> None:
        """Start the VM while a program has the framebuffer open."""
        holder = self.scenario.holder
        assert holder is not None
        holder.begin(self.machine)
        plan = self.type(f"{US} plan gpu", 1)
        start = self.type("virsh start gpu", 1)
        status = self.type(f"{US} status")
        for screen in (plan, start, status):
            self.names(screen, holder)
        holder.end(self.machine)
        self.type(f"{US} recover")
        self.check_claims("refusal")

    def bug_report(self) -> None:
        """Run record; the file has nothing private, and commands work on it."""
        hostdevs = "".join(re.findall(r"(?s)<hostdev.*?</hostdev>", domain_xml(self.leaving)))
        self.machine.put("/root/diary.xml", PRIVATE_XML.format(hostdevs=hostdevs).encode())
        define = self.machine.run("virsh define /root/diary.xml")
        self.demand(define.ok, f"virsh define: {define.stderr}")
        self.type(f"{US} record {MACHINE_FILE}")
        text = (self.machine.get(MACHINE_FILE) or b"").decode()
        self.keep("machine.txt", text)
        for secret in (*SECRETS, "lab"):
            found = re.search(rf"(?i).*\b{re.escape(secret)}\b.*", text)
            self.demand(found is None, f"{secret} is in the snapshot: {found and found[0][:200]}")
        self.type(f"{US} --root {MACHINE_FILE} plan gpu")
        self.type(f"{US} --root {MACHINE_FILE} doctor", (0, 1))
        self.type(f"{US} --root {MACHINE_FILE} status")
        self.machine.run("virsh undefine diary --nvram")

    def mistakes(self) -> None:
        """Run check-config without a file, for a VM, and with mistakes in the VM's file."""
        self.type(f"{US} check-config")
        self.type(f"{US} check-config --vm gpu")
        self.machine.put(CONFIG_FILE, MISTAKES)
        wrong = self.type(f"{US} check-config", 1)
        self.shows(wrong, "gpu.yaml:1:", "gpu.yaml:3:", "keep_console")
        self.type("virsh start gpu", 1)
        self.type(f"{US} plan gpu", 1)
        self.type(f"{US} doctor", 1)
        self.machine.run(f"rm {CONFIG_FILE}")

    def manual(self) -> None:
        """Read the manual pages, and complete commands and names with the tab key."""
        self.shows(self.type(f"man {US} | cat"), "NAME", "EXAMPLES")
        self.shows(self.type(f"man {US}.yaml | cat"), "NAME")
        commands = self.terminal.complete(f"{US} ")
        self.keep("completion.txt", commands)
        for word in ("plan", "status", "doctor", "check-config"):
            self.demand(word in commands, f"completion does not offer {word}")
        names = self.terminal.complete(f"{US} plan ")
        self.keep("completion-vm.txt", names)
        self.demand(f"{US} plan gpu" in names, "the VM's name is not completed")

    def without_root(self) -> None:
        """Run commands without sudo: each reports that root can read more."""
        for command in ("plan gpu", "status", "doctor", "record /tmp/nobody.txt"):
            screen = self.type(f"runuser -u nobody -- {US} {command}", (0, 1))
            self.shows(screen, "root")

    def pipes(self) -> None:
        """Escape sequences are written only to a terminal, and not with NO_COLOR."""
        coloured = False
        for command in (f"{US} plan gpu", f"{US} status", f"{US} doctor", f"{US} --help"):
            coloured |= ESCAPE in self.terminal.type(command).coloured
            piped = self.machine.run(command)
            self.demand(ESCAPE not in piped.stdout + piped.stderr, f"{command} colours a pipe")
            plain = self.terminal.type(f"NO_COLOR=1 {command}")
            self.demand(ESCAPE not in plain.coloured, f"{command} colours despite NO_COLOR")
        self.demand(coloured, "nothing has any colour on a terminal")

    def busy_libvirt(self) -> None:
        """Run commands while the hook of another VM keeps libvirt from answering."""
        self.machine.put("/root/busy.xml", BUSY_XML.encode())
        self.machine.put(SLOW_HOOK, _SLOW_HOOK)
        self.machine.run(f"chmod 755 {SLOW_HOOK}; virsh define /root/busy.xml")
        starting = Background(self.machine, f"virsh start {BUSY}", BUSY)
        self.machine.run("sleep 3; pgrep -af slow")
        alone = self.terminal.type("timeout 20 virsh -r dumpxml --inactive gpu")
        note = f"virsh dumpxml beside it: {alone.seconds:.1f} s, status {alone.status}"
        self.result.notes.append(note)
        for command in (f"{US} plan gpu", f"{US} status", f"{US} doctor"):
            screen = self.type(command, (0, 1))
            # doctor asks several connections of libvirt.
            late = screen.seconds > ANSWERS_WITHIN_S * (2 if "doctor" in command else 1)
            self.demand(not late, f"{command} took {screen.seconds:.0f} s beside a busy libvirt")
        begun = self.machine.run("pgrep -af slow").stdout
        self.result.notes.append(f"the slow hook {'still runs' if begun else 'is done'} by then")
        starting.wait(90)
        self.machine.run(f"virsh destroy {BUSY}; virsh undefine {BUSY}; rm {SLOW_HOOK}")

    # The demands

    def type(self, command: str, status: int | tuple[int, ...] = 0) -> Screen:
        """Type a command, keep its screen, and demand its exit status."""
        screen = self.terminal.type(command)
        self.typed += 1
        name = f"{self.typed:02}-{slug(command)}"
        screen.write(self.directory, name)
        with (self.directory / "session.txt").open("a") as file:
            file.write(f"{screen.seen}\n[{screen.status}, {screen.seconds:.1f} s]\n\n")
        wanted = (status,) if isinstance(status, int) else status
        ended = f"{name}: ended with {screen.status}, not {wanted}"
        self.demand(screen.status in wanted, ended)
        if command.startswith((US, "runuser")):
            self.check_screen(name, screen)
        return screen

    def check_screen(self, name: str, screen: Screen) -> None:
        """Check what must hold for the output of every command."""
        wrapped = [line for line in screen.wrapped() if not TO_COPY.match(line)]
        if "json" not in screen.command and "prometheus" not in screen.command:
            self.demand(not wrapped, f"{name}: wrapped: {wrapped[:3]}")
        self.demand(screen.output.isascii(), f"{name}: the output is not all ASCII")
        self.demand("Traceback" not in screen.output, f"{name}: a traceback")
        late = f"{name}: took {screen.seconds:.0f} s"
        self.demand(screen.seconds <= COMES_BACK_WITHIN_S, late)

    def shows(self, screen: Screen, *words: str) -> None:
        """The words are on the screen."""
        for word in words:
            self.demand(word in screen.whole, f"{screen.command} does not show {word!r}")

    def names(self, screen: Screen, holder: Holder) -> None:
        """The holder is on the screen, even if its line is wrapped."""
        found = re.search(rf"{holder.name}\s+\(\d+\)", screen.whole)
        self.demand(bool(found), f"{screen.command} does not name {holder.name}")

    def json(self, command: str) -> Any:
        """The JSON value that a command prints; None if it is no JSON."""
        answer = self.machine.run(command, 120)
        try:
            return json.loads(answer.stdout)
        except ValueError:
            self.demand(False, f"{command}: no JSON: {answer.stdout[:80]}{answer.stderr[:200]}")
            return None

    def check_same_steps(self, planned: Any, held: Any) -> None:
        """The steps in status are those of plan, in the same order."""
        would, did = steps(planned), [step for one in vms(held) for step in steps(one)]
        self.demand(bool(would) and would == did, f"planned: {would}, done: {did}")

    def check_log(self, since: str) -> None:
        """The log of one run has few lines, and fields to search by."""
        command = f"journalctl -t {US} --no-pager"
        self.type(f"{command} | cat")
        answer = self.machine.run(f"{command} -o json --since '{since}'")
        lines = [json.loads(line) for line in answer.stdout.splitlines()]
        self.demand(0 < len(lines) <= LOG_LINES, f"the log of one run has {len(lines)} lines")
        self.keep("journal.json", json.dumps(lines, indent=1))
        for field in ("VM", "UUID", "GPU", "PHASE"):
            having = [line for line in lines if field in line]
            self.demand(bool(having), f"no line of the log has the field {field}")
        ours = self.machine.run(f"journalctl -o cat VM=gpu --since '{since}'").stdout
        self.demand(len(ours.splitlines()) == len(lines), "VM=gpu does not find the lines")

    def keep(self, name: str, text: str) -> None:
        """Keep a text with the results."""
        (self.directory / name).write_text(text + "\n")


def vms(status: Any) -> list[Any]:
    """The VMs in the output of `status --json`."""
    return list((status or {}).get("holds", ()))


def steps(value: Any) -> list[tuple[str, ...]]:
    """The steps of a plan or of a VM in status, with the keys that both have."""
    keys = ("stage", "gpu", "why", "undo")
    return [tuple(str(step[key] or "") for key in keys) for step in (value or {}).get("steps", ())]
