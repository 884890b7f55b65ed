"""Unbinding a sound function that a sound server has open.

A server closes a card that disappears, and opens it again when it is back: the kernel takes
its nodes away before it waits for the last program (Linux sound/core/init.c,
snd_card_disconnect and snd_card_free). In the lab WirePlumber took 0.9 and 1.8 s. One that
does not is killed, so that the wait ends: no signal would end the wait itself. Killed, and
not asked, because systemd starts it again only after a failure (Restart=on-failure).
"""

from __future__ import annotations

from collections.abc import Collection

from ..machine import processes
from ..machine.holders import Search, listed
from ..machine.host import Host

_LETS_GO_WITHIN_S = 4.0


def unbind(host: Host, driver: str, address: str, nodes: Collection[str]) -> str:
    """Unbind the driver from a function; what became of the servers that had its nodes open."""
    search = Search(host, nodes)
    servers = [one for one in search.holders() if one.sound_server]
    killed: list[str] = []

    def kill() -> None:
        for one in search.among([server.pid for server in servers]):
            process = processes.find(host, one.pid)
            if process is not None and process.started == one.started:
                killed.append(one.name)
                processes.kill(host, process)

    path = f"sys/bus/pci/drivers/{driver}/unbind"
    if not servers:
        host.write(path, address)
        return ""
    host.write_watched(path, address, kill, _LETS_GO_WITHIN_S)
    if killed:
        return f"killed {listed(killed)}, which did not close a sound card that has disappeared"
    return f"{listed(one.name for one in servers)} closed the sound card"
