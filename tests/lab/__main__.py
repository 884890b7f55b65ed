"""The command line of the lab; `python3 -m tests.lab --help` from the repository's root."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from . import __doc__ as manual
from . import images, kernels, machine, matrix, retry, scenarios, tables, trials
from .architectures import AMD64
from .cache import BuildError, Cache, default_root
from .debian import require_tools
from .kernels import Built
from .machine import Gpu, Hardware, Machine
from .result import Outcome, Result
from .scenarios import Scenario
from .stand_ins import with_modules

# Under a time budget so many scenarios come before the first cells of the matrix.
FIRST_IN_CI = 12
# Where a scenario's firmware is not QEMU's own SeaBIOS.
FIRMWARE = {"ovmf": images.ovmf, "u-boot": images.u_boot}
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Lab:
    """What all scenarios share: the built files, and the directory of results."""

    built: dict[tuple[str, tuple[str, ...], str], Built]
    firmware: dict[str, Path]
    program: Path
    out: Path

    def hardware(self, scenario: Scenario) -> Hardware:
        """The hardware of a scenario's machine."""
        return Hardware(
            gpus=scenario.gpus,
            firmware=self.firmware.get(scenario.firmware),
            kernel_line=scenario.kernel_line,
            # A stand-in and the native driver want the same devices.
            blacklist_native=bool(scenario.stand_ins)
            or (not scenario.native_driver and "lab." not in scenario.kernel_line),
            architecture=kernels.named(scenario.kernel).architecture,
            memory_mib=scenario.memory_mib,
        )

    def run(self, scenario: Scenario) -> Result:
        """Run one scenario in its own directory."""
        directory = self.out / scenario.name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        built = self.built[parts_of(scenario)]

        def boot() -> Machine:
            return Machine(self.hardware(scenario), built, self.program, directory)

        result = retry.run(scenario, trials.KINDS[scenario.kind], boot, directory)
        tables.keep(result, directory)
        return result


def main(argv: Sequence[str]) -> int:
    """Run the command line; the exit status."""
    options = parse(argv)
    began = time.monotonic()
    if options.list:
        print_list()
        return 0
    try:
        cache = Cache(options.cache)
        if options.shell:
            return shell(cache, options.shell)
        chosen, missing = matrix.offered(choose(options), cache)
        for name, why in missing.items():
            print(f"kernel {name}: left out of the matrix, {why}", flush=True)
        if options.budget:
            chosen, left_out = fit(chosen, cache, options.budget * 60, options.jobs)
            print_left_out(left_out)
            print_part(chosen)
        lab = build(cache, chosen, options.out or cache.root / "results")
        if options.matrix and not options.names:
            tables.forget(lab.out)
    except BuildError as e:
        print(f"tests/lab: {e}", file=sys.stderr)
        return 2
    if options.build_only:
        return 0
    until = began + options.budget * 60 if options.budget else None
    results = run_all(lab, chosen, options.jobs, until)
    print_table(results, lab.out)
    if options.matrix:
        print(tables.write(lab.out), flush=True)
    return status(results)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        prog="tests/lab/run",
        description=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios; all without")
    parser.add_argument("--list", action="store_true", help="list scenarios and kernels")
    parser.add_argument("--smoke", action="store_true", help="a small default subset")
    parser.add_argument("--ci", action="store_true", help="same as --budget 35")
    parser.add_argument("--matrix", action="store_true", help="each kernel with each console")
    help_against = "with --matrix: also without a hook and with the script of the guides"
    parser.add_argument("--against", action="store_true", help=help_against)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="run what fits into it")
    parser.add_argument("--build-only", action="store_true", help="fill the cache, boot nothing")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="machines at a time")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    parser.add_argument("--cache", type=Path, default=default_root(), metavar="DIR")
    parser.add_argument("--shell", metavar="KERNEL", help="a root shell in that kernel")
    options = parser.parse_args(argv)
    known = {one.name for one in (*scenarios.SCENARIOS, *matrix.REHEARSED)} | {*matrix.CELLS}
    for name in options.names:
        if name not in known:
            parser.error(f"no scenario {name!r}; there are {', '.join(sorted(known))}")
    if options.against and not options.matrix:
        parser.error("--against goes with --matrix")
    if options.shell and options.shell not in {kernel.name for kernel in kernels.KERNELS}:
        parser.error(f"no kernel {options.shell!r}; see --list")
    if options.ci and not options.budget:
        options.budget = 35.0
    if options.jobs < 1:
        parser.error("--jobs needs a number from 1 up")
    return options


def choose(options: argparse.Namespace) -> list[Scenario]:
    """The scenarios that the command line asks for, in order of priority."""
    cells = matrix.scenarios([*matrix.CELLS.values()])
    if options.names:
        named = (*scenarios.SCENARIOS, *cells, *matrix.REHEARSED)
        return [s for s in named if s.name in options.names]
    if options.matrix:
        return [s for s in cells if options.against or s.hook]
    if options.ci:
        first, later = scenarios.SCENARIOS[:FIRST_IN_CI], scenarios.SCENARIOS[FIRST_IN_CI:]
        return [*first, *(s for s in cells if s.name in matrix.IN_CI), *later]
    return [s for s in scenarios.SCENARIOS if s.smoke or not options.smoke]


def fit(
    wanted: Sequence[Scenario], cache: Cache, budget_s: float, jobs: int
) -> tuple[list[Scenario], list[Scenario]]:
    """The scenarios that should end within the budget, in order, and the others."""
    chosen: list[Scenario] = []
    left_out: list[Scenario] = []
    spent_s = 0.0
    there: set[str] = set()
    roots: set[str] = set()
    for scenario in wanted:
        cost_s = scenario.seconds() / jobs
        kernel = kernels.named(scenario.kernel)
        if scenario.kernel not in there:
            cost_s += kernels.seconds_to_build(cache, kernel, there)
        if scenario.root not in roots:
            cost_s += kernels.seconds_to_build_root(cache, kernel, scenario.root)
        if spent_s + cost_s > budget_s:
            left_out.append(scenario)
            continue
        chosen.append(scenario)
        there.add(scenario.kernel)
        roots.add(scenario.root)
        spent_s += cost_s
    return chosen, left_out


def build(cache: Cache, chosen: Sequence[Scenario], out: Path) -> Lab:
    """Build or find what the chosen scenarios boot from."""
    wanted = [kernels.named(name) for name in dict.fromkeys(s.kernel for s in chosen)]
    require_tools(
        own_kernels=any(kernel.fragments for kernel in wanted),
        architectures={kernel.architecture for kernel in wanted},
    )
    out.mkdir(parents=True, exist_ok=True)
    program = out / "program.tar"
    program.write_bytes(images.program(REPOSITORY))
    plain = {kernel.name: kernels.build(cache, kernel) for kernel in wanted}
    built = {}
    for one in chosen:
        whole = with_modules(cache, plain[one.kernel], one.stand_ins)
        if one.root:
            whole = replace(whole, root=images.root(cache, whole.kernel.root, one.root))
        built[parts_of(one)] = whole
    firmware = {one: FIRMWARE[one](cache) for one in {s.firmware for s in chosen} & {*FIRMWARE}}
    return Lab(built, firmware, program, out)


def parts_of(scenario: Scenario) -> tuple[str, tuple[str, ...], str]:
    """What decides which files a scenario boots from."""
    return scenario.kernel, scenario.stand_ins, scenario.root


def run_all(lab: Lab, chosen: Sequence[Scenario], jobs: int, until: float | None) -> list[Result]:
    """Run scenarios, `jobs` at a time. One that cannot end in time is not started."""
    results: list[Result] = []
    lock = threading.Lock()

    def one(scenario: Scenario) -> None:
        if until is not None and time.monotonic() + scenario.seconds() > until:
            print_left_out([scenario])
            return
        print(f"{scenario.name}: started", flush=True)
        result = lab.run(scenario)
        with lock:
            results.append(result)
            print(f"{scenario.name}: {result.outcome.value} ({result.seconds:.0f} s)", flush=True)

    # Not a context manager: its exit would wait for the machines after a ctrl-c.
    pool = ThreadPoolExecutor(max_workers=jobs)
    for future in [pool.submit(one, scenario) for scenario in chosen]:
        future.result()
    order = {scenario.name: number for number, scenario in enumerate(chosen)}
    return sorted(results, key=lambda result: order[result.scenario.name])


def status(results: Sequence[Result]) -> int:
    """The exit status. A failure outweighs a lost machine; no pass at all is a failure."""
    outcomes = {result.outcome for result in results}
    if Outcome.FAIL in outcomes or Outcome.PASS not in outcomes:
        return 1
    return 3 if Outcome.LOST in outcomes else 0


def print_table(results: Sequence[Result], out: Path) -> None:
    """Print one line a scenario, and its failures and notes below it."""
    lines = [f"{'scenario':36} {'kernel':18} {'GPUs':10} {'outcome':8} {'s':>4}"]
    for result in results:
        scenario = result.scenario
        gpus = "+".join("0300" if gpu.device == "VGA" else "0380" for gpu in scenario.gpus)
        words = (result.outcome.value, f"{result.seconds:4.0f}")
        lines.append(f"{scenario.name:36} {scenario.kernel:18} {gpus:10} {words[0]:8} {words[1]}")
        lines += [f"    {text}" for text in result.failures]
        lines += [f"    note: {text}" for text in result.notes]
    text = "\n".join(lines) + "\n"
    (out / "table.txt").write_text(text)
    print(f"\n{text}\nlogs and pictures: {out}", flush=True)


def print_part(chosen: Sequence[Scenario]) -> None:
    """Print which cells of the matrix are among these scenarios, and which are not."""
    names = {scenario.name for scenario in chosen}
    here = [cell.words for cell in matrix.MATRIX if cell.scenario().name in names]
    rest = [cell.words for cell in matrix.MATRIX if cell.scenario().name not in names]
    print(f"of the matrix, {len(here)} of {len(matrix.MATRIX)} cells fit: {', '.join(here)}")
    print(f"left to tests/lab/run --matrix: {', '.join(rest)}", flush=True)


def print_left_out(left_out: Sequence[Scenario]) -> None:
    """Print the scenarios that do not fit into the budget."""
    for scenario in left_out:
        print(f"{scenario.name}: left out, the budget is too small", flush=True)


def print_list() -> None:
    """Print the scenarios, the cells of the matrix and the kernels."""
    for scenario in scenarios.SCENARIOS:
        smoke = "smoke" if scenario.smoke else ""
        console = "vgacon" if scenario.console == scenarios.VGACON else scenario.console
        print(f"{scenario.name:36} {scenario.kernel:18} {console:10} {smoke}".rstrip())
    print("cells of the matrix:", ", ".join(matrix.CELLS))
    print("rehearsed-CELL: the same with a rehearsal before the start, for each matrix-...")
    print("kernels:", ", ".join(kernel.name for kernel in kernels.KERNELS))


def shell(cache: Cache, name: str) -> int:
    """Open a root shell in a machine with this kernel and one GPU; QEMU's exit status."""
    kernel = kernels.named(name)
    require_tools(own_kernels=bool(kernel.fragments), architectures=(kernel.architecture,))
    built = kernels.build(cache, kernel)
    program = cache.root / "program.tar"
    program.write_bytes(images.program(REPOSITORY))
    print("leave with ctrl-a x; the working tree is in /root/vfio-console-hook", flush=True)
    if kernel.architecture is AMD64:
        hardware = Hardware((Gpu(),), images.ovmf(cache), "lab.shell")
    else:
        hardware = Hardware(
            (scenarios.BOCHS,), images.u_boot(cache), "lab.shell", architecture=kernel.architecture
        )
    return machine.interactive(hardware, built, program)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        # Do not wait for the threads: their machines die with this process.
        os._exit(130)
