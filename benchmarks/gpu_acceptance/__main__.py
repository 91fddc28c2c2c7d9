"""The command line: ``python -m benchmarks.gpu_acceptance --out DIR``, and ``... report DIR``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import conductor, report, tables
from .stage import DEVICES, Stage, read_json


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"report": _report, "tables": _tables, "refit": _refit, "stage": _stage, "exercise": _exercise}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_acceptance",
        description="Prove and measure everything that needs a GPU.",
        epilog="python -m benchmarks.gpu_acceptance report DIR renders a run's files as Markdown.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (default: %(default)s)")
    parser.add_argument("--stages", default=",".join(conductor.SHARES), metavar="A,B", help="of: %(default)s")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help=f"{DEVICES[1]}: a dry run, tiny, without a GPU")
    parser.add_argument("--commit", help="what the files name, where git cannot tell")
    parser.add_argument("--built", action="store_true", help="load the CUDA kernels that are there instead of building them")
    options = parser.parse_args(arguments)
    asked_for = options.stages.split(",")
    unknown = [name for name in asked_for if name not in conductor.SHARES]
    if unknown:
        parser.error(f"unknown stages {', '.join(unknown)}; known are {', '.join(conductor.SHARES)}")
    stages = [name for name in conductor.SHARES if name in asked_for]
    plan = conductor.Plan(options.out, options.device, stages, options.minutes, options.commit, built=options.built)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run that is ended from outside ends its children
    try:
        fine = conductor.conduct(plan)
    finally:
        (options.out / "report.md").write_text(report.render(options.out), encoding="utf-8")
        summary = report.summary(options.out)
        (options.out / "summary.md").write_text(summary, encoding="utf-8")
        print(f"\n{summary}")
    return 0 if fine else 1


def _report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_acceptance report", description="Render a run as Markdown.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--update-docs", action="store_true", help="render the documents' tables and picture from it, too")
    options = parser.parse_args(arguments)
    print(report.render(options.directory), end="")
    if options.update_docs:
        _update_documents(options.directory / "speed.json")
    return 0


def _update_documents(speed: Path) -> None:
    """The README's table and picture from this file, and every other table from the file that it names."""
    from .. import report as rendered
    from . import documents

    rendered.update_readme(speed, "gpu")
    rendered.update_documents()
    (rendered.ROOT / documents.FIGURE).write_text(documents.heat_map(read_json(speed)), encoding="utf-8")


def _tables(arguments: Sequence[str]) -> int:
    """A run's measurements, into the tables that plans read."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_acceptance tables",
        description="Write what a run's tuning measured to the tables in the sources, in place of the same GPU generation's.",
    )
    parser.add_argument("directory", type=Path)
    try:
        written = tables.write(parser.parse_args(arguments).directory)
    except tables.NoMeasurements as reason:
        parser.error(str(reason))
    print("\n".join(map(str, written)))
    return 0


def _refit(arguments: Sequence[str]) -> int:
    """A run's mechanisms, into the constants of the CUDA kernels' cost model."""
    from . import refit

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_acceptance refit",
        description="Fit the cost model of the CUDA kernels' plan to a run, and print the constants.",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--write", action="store_true", help="to the file that the plan is built with")
    options = parser.parse_args(arguments)
    try:
        print(refit.run(options.directory, options.write), end="")
    except refit.NothingToFit as reason:
        parser.error(str(reason))
    return 0


def _stage(arguments: Sequence[str]) -> int:
    """One stage in this process: what the conductor's children run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_acceptance stage")
    parser.add_argument("name", choices=[*conductor.SHARES, conductor.BACKGROUND])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=DEVICES, required=True)
    parser.add_argument("--commit")
    parser.add_argument("--built", action="store_true")
    options = parser.parse_args(arguments)

    import gc
    import importlib

    import torch

    module = importlib.import_module(f".{options.name}", __package__)
    # In a dry run tensors are tiny; otherwise most cores compile.
    torch.set_num_threads(1 if options.device != DEVICES[0] else 4)
    gc.freeze()  # what is imported stays: collecting garbage must not look at it each time
    told = sys.stdin.readline()
    if not told:
        return 0  # never told to go
    deadline = json.loads(told)["deadline"]
    run_stage(Stage(options.name, options.out, options.device, deadline, built=options.built), module, options.commit)
    # Nothing is left to do, and taking interpreter and driver down in order would take a second and let Triton's bindings
    # complain about what is still alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_stage(stage: Stage, module: ModuleType, commit: str | None) -> None:
    """One stage, here and now."""
    from . import machine

    def measure(stage: Stage) -> None:
        if stage.name == conductor.BACKGROUND:  # it has no GPU
            stage.content["conditions"] = (stage.other("machine") or {}).get("conditions", {})
        else:
            stage.content["conditions"] = machine.conditions(stage, commit)
        module.run(stage)

    stage.run(measure)


def _exercise(arguments: Sequence[str]) -> int:
    """The cases given as JSON, once each: what profiler and sanitizer look at."""
    from . import profiles

    profiles.exercise(json.loads(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
