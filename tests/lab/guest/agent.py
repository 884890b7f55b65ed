"""Runs inside a lab machine: handles the lab's requests, one JSON line each.

    {"run": "a sh command", "timeout": seconds} -> {"status": n, "stdout": ..., "stderr": ...}
    {"put": "path", "data": base64}             -> {}
    {"get": "path"}                             -> {"data": base64} or {"error": ...}

A command that does not end in time is killed with all that it has started, and its
status is 124, as with timeout(1). Standard library of Python 3.9 only.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import signal
import subprocess
import tempfile
import time

PORT = "vfio-lab"


def port_device() -> str:
    """The device file of our virtio-serial port, found without udev."""
    while True:
        for path in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(path) as file:
                if file.read().strip() == PORT:
                    return "/dev/" + os.path.basename(os.path.dirname(path))
        time.sleep(0.2)


def run(command: str, timeout_s: float) -> dict[str, object]:
    """Run a shell command until it ends or times out.

    The output goes to files, so this does not wait for a background child that keeps
    them open.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd="/root",
            start_new_session=True,
        )
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            status = 124
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {"status": status, "stdout": texts[0], "stderr": texts[1]}


def answer(request: dict[str, str]) -> dict[str, object]:
    """The reply to a request."""
    if "run" in request:
        return run(request["run"], float(request["timeout"]))
    if "put" in request:
        os.makedirs(os.path.dirname(request["put"]), exist_ok=True)
        with open(request["put"], "wb") as file:
            file.write(base64.b64decode(request["data"]))
        return {}
    try:
        with open(request["get"], "rb") as file:
            return {"data": base64.b64encode(file.read()).decode()}
    except OSError as e:
        return {"error": str(e)}


def main() -> None:
    """Send hello, then handle requests until the machine is powered off."""
    with open(port_device(), "r+b", buffering=0) as port:
        port.write(json.dumps({"hello": os.uname().release}).encode() + b"\n")
        pending = b""
        while True:
            data = port.read(65536)
            if not data:  # the lab is not connected
                time.sleep(0.2)
                continue
            pending += data
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                reply = json.dumps(answer(json.loads(line))).encode() + b"\n"
                while reply:
                    reply = reply[port.write(reply) :]


if __name__ == "__main__":
    main()
