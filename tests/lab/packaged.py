"""Our hook from a .deb: apt installs it, upgrades it while the VM runs, and removes it."""

from __future__ import annotations

from .trial import PROGRAM, Trial

NEXT = "99.0.0"
# The next version differs in what an upgrade replaces: the directory of the program.
_BUMP = (
    f"""sed -i 's/^__version__ = .*/__version__ = "{NEXT}"/' vfio_console_hook/__init__.py && """
    f"sed -i '0,/^## /s//## {NEXT} (2027-01-01)\\n\\n## /' NEWS.md"
)
_OURS = "find / -xdev -name '*vfio-console-hook*' ! -path '/root/*' ! -path '/var/lib/systemd/*'"


class Packaged(Trial):
    """Starts and destroys the VM with the hook of a package."""

    def install(self) -> bool:
        """Make the package in the machine, as a person would, and install it."""
        if not self.install_package():
            return False
        self.configure()
        return True

    def install_package(self) -> bool:
        """Make a .deb of the program in the machine, and let apt install it."""
        answer = self.machine.run(
            f"cd {PROGRAM} && rm -f /root/*.deb && ./install.sh --package deb /root &&"
            " apt-get install -y /root/vfio-console-hook_*.deb </dev/null",
            300,
        )
        return self.demand(answer.ok, f"the package was not installed: {answer.stderr.strip()}")

    def meanwhile(self, name: str, number: int) -> None:
        """Try to remove the package, and upgrade it; cycle 2 is not measured."""
        if number != 2:
            return
        refused = self.machine.run("apt-get purge -y vfio-console-hook </dev/null", 180)
        # apt prints what scripts print on stderr with all else.
        known = "a VM still holds a GPU of this host" in refused.stdout + refused.stderr
        self.demand(known and not refused.ok, f"{name}: apt has removed the hook of a running VM")
        bumped = self.machine.run(f"cd {PROGRAM} && {_BUMP}")
        self.demand(bumped.ok and self.install_package(), f"{name}: no upgrade")
        version = self.machine.run("vfio-console-hook --version").stdout.strip()
        self.demand(version == NEXT, f"{name}: version {version} is installed")
        self.check_running(name)

    def run(self) -> None:
        """The cycles, then the purge."""
        super().run()
        before = self.machine.run(f"{_OURS} -print").stdout.split()
        self.demand(bool(before), "the package has left no file to look for")
        purge = self.machine.run("apt-get purge -y vfio-console-hook </dev/null", 180)
        self.demand(purge.ok, f"apt-get purge: {purge.stderr.strip()}")
        left = self.machine.run(f"{_OURS} -print; ls -A /etc/libvirt/hooks").stdout.split()
        self.demand(not left, f"the purge has left {' '.join(left)}")
