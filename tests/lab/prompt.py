"""A refusal is shown at the login prompt of the text console, until the VM starts.

A real agetty draws the prompt; nothing is typed. What the screen shows is read from the
console's memory, and each time a picture is taken for people. The command of on_refusal keeps
what it is told, and takes longer than the start.
"""

from __future__ import annotations

import time

from .trial import Trial

GETTY = "getty@tty1.service"
SHOWN_WITHIN_S = 60
REFUSAL = "VM gpu was not started"
# agetty writes a new prompt below what the screen shows, where nothing clears it.
LAST_PROMPT = "awk '/GNU.Linux/ { text = \"\" } { text = text $0 \"\\n\" } END { print text }'"
COMMAND = "/usr/local/sbin/told"
TOLD = b"""#!/bin/sh
{ cat; env; } >/run/told.new
mv /run/told.new /run/told
sleep 1000
"""


class Prompt(Trial):
    """Refused twice, started, dismissed: the prompt shows just what there is to show."""

    def run(self) -> None:
        """Set up, then look at the prompt after each."""
        holder = self.scenario.holder
        assert holder is not None
        if not self.set_up():
            return
        # The lab's machines have none on the terminal that is photographed.
        self.machine.run(
            f"rm /etc/systemd/system/{GETTY}; systemctl daemon-reload; systemctl start {GETTY}"
        )
        self.machine.run("agetty --version; ls -l /etc/issue /etc/issue.d; ls -lL /etc/issue.d")
        self.expect("first", 0)
        for number in range(1, self.scenario.cycles + 1):
            holder.begin(self.machine)
            self.refuse(f"refused{number}")
            holder.end(self.machine)
            self.start_it(f"started{number}")
        holder.begin(self.machine)
        self.refuse("refused-last")
        self.machine.run("vfio-console-hook dismiss gpu")
        self.expect("dismissed", 0)
        holder.end(self.machine)

    def configure(self) -> None:
        """Write the program that the configuration names, too."""
        self.machine.put(COMMAND, TOLD)
        self.machine.run(f"chmod 755 {COMMAND}")
        super().configure()

    def refuse(self, name: str) -> None:
        """Start the VM in vain."""
        self.machine.note(name)
        self.mark(name)
        self.machine.run("rm -f /run/told")
        error = self.start() or ""
        self.demand("in use by" in error, f"{name}: {error or 'the VM started'}")
        self.expect(name, 1)
        told = self.machine.run("cat /run/told; pgrep -a timeout").stdout
        wanted = ("VM gpu: it was not started: ", "\nVFIO_CONSOLE_HOOK_EVENT=prepare\n", COMMAND)
        missing = [one for one in wanted if one not in told]
        self.demand(not missing, f"{name}: the command was not told {missing}: {told}")
        self.check_kernel(name)

    def start_it(self, name: str) -> None:
        """Start and destroy the VM: the GPU comes back without the text."""
        self.machine.note(name)
        self.mark(name)
        error = self.start()
        if self.demand(error is None, f"{name}: {error}"):
            time.sleep(5)
            self.check_running(name)
            self.machine.run("virsh destroy gpu", 180)
        self.expect(name, 0)
        self.check_claims(name)
        self.check_kernel(name)

    def expect(self, name: str, times: int) -> None:
        """The last prompt has the refusal so many times, soon; then take a picture."""
        look = (
            "fold -w $(stty -F /dev/tty1 size | cut -d ' ' -f 2) /dev/vcs1"
            f" | {LAST_PROMPT} >/run/screen;"
            f" grep -q 'login:' /run/screen && [ $(grep -c '{REFUSAL}' /run/screen) = {times} ]"
        )
        tries = f"[ $((n += 1)) -lt {SHOWN_WITHIN_S} ] || exit 1; sleep 1"
        found = self.machine.run(f"n=0; until {look}; do {tries}; done", 120)
        text = self.machine.run("cat /run/screen; cat /run/vfio-console-hook.status/issue").stdout
        self.pictures(name)
        self.demand(found.ok, f"{name}: the screen shows not {times} refusals: {text}")
