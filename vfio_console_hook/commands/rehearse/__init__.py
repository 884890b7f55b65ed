"""rehearse: what a VM's start and stop do to the host, without the VM, and back by itself.

command.py asks and follows; runner.py and watchdog.py do the work, detached from the
terminal (detached.py). What they did is in a file (rehearsal.py), and what came of it is compared
with what plan had said (promise.py, sight.py, verdict.py). real.py starts the VM itself instead.
evidence.py keeps what the machine was, of which report.py makes one text.
"""
