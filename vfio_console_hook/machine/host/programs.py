"""Programs of the machine: run with a fixed environment and a time limit, never by a shell."""

from __future__ import annotations

import os

from ...errors import HostError, StuckError, cut

# LC_ALL: programs print in the language that is understood here. No variable of the caller
# changes what they do (MODPROBE_OPTIONS, SYSTEMD_*). libvirt leaves a hook little more.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
# How long a killed child may take to be gone. One that is stuck in the kernel never is.
_KILL_GRACE_S = 2.0
# virsh of libvirt 7.0 shows 800 bytes of a message.
_LONGEST_COMPLAINT = 1000


class Programs:
    """The programs of the machine. environment is what run() gives them."""

    environment: dict[str, str]

    def run(self, *command: str, timeout_s: float = 30) -> str:
        """The output of a program, called by its full path, as text like that of read().

        Raises HostError when it fails or does not end in time, StuckError when it
        cannot even be killed.
        """
        import subprocess  # slow to load, and only rare paths need it

        shown = " ".join(command)
        pipe = subprocess.PIPE
        try:
            child = subprocess.Popen(  # noqa: S603  (no shell, and callers give full paths)
                command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=self.environment,
            )  # fmt: skip
        except OSError as error:
            raise HostError(f"cannot run {shown}: {os.strerror(error.errno or 0)}") from error
        try:
            output, complaint = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            try:
                child.wait(_KILL_GRACE_S)
            except subprocess.TimeoutExpired:
                raise StuckError(
                    f"the kernel is stuck in `{shown}` (process {child.pid})",
                    hint="save your work and reboot the host",
                ) from error
            raise HostError(f"{shown} did not end within {timeout_s:g} s") from error
        if child.returncode:
            raise HostError(
                f"{shown} failed: {_sentence(complaint) or f'exit status {child.returncode}'}"
            )
        return output.decode("utf-8", "surrogateescape").strip()

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        """The exit status of a program, called by its full path; None while it still runs.

        After timeout_s it is left running. Its output goes to /dev/null: a script that
        starts a daemon may pass our pipes on, and we would wait for the daemon's end.
        Raises HostError when it cannot be started.
        """
        import subprocess  # slow to load, and only rare paths need it

        null = subprocess.DEVNULL
        try:
            # In a session of its own it outlives a kill of our session (worker.stop_session).
            child = subprocess.Popen(  # noqa: S603  (no shell, and callers give full paths)
                command, stdin=null, stdout=null, stderr=null, start_new_session=True,
                env=ENVIRONMENT,
            )  # fmt: skip
        except OSError as error:
            shown = " ".join(command)
            raise HostError(f"cannot run {shown}: {os.strerror(error.errno or 0)}") from error
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def become(
        self, *command: str, environment: dict[str, str], text: str, timeout_s: float
    ) -> None:
        """Go on as a program, called by its full path, which reads text on stdin.

        It is ended after timeout_s, by timeout(1), where the machine has one. Raises HostError
        when it cannot be started.
        """
        import signal  # only for a command that is configured

        for timeout in ("/usr/bin/timeout", "/bin/timeout"):
            if os.path.exists(timeout):
                command = (timeout, "-k", "5", f"{timeout_s:g}", *command)
                break
        try:
            reader = os.memfd_create("text")
            os.write(reader, text.encode("utf-8", "backslashreplace"))
            os.lseek(reader, 0, os.SEEK_SET)
            os.dup2(reader, 0)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # who waits for their end waits for it
            os.chdir("/")
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores
            os.execve(  # noqa: S606  (no shell, and callers give full paths)
                command[0], command, {**ENVIRONMENT, **environment}
            )
        except OSError as error:
            shown = " ".join(command)
            raise HostError(f"cannot run {shown}: {os.strerror(error.errno or 0)}") from error


def _sentence(complaint: bytes) -> str:
    """What a program printed on stderr, in any encoding, as one line of text."""
    text = " ".join(complaint.decode(errors="backslashreplace").split())
    return cut(text, _LONGEST_COMPLAINT)
