"""``python -m benchmarks study``: measure what is missing, then render the report."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .. import machine
from ..report import ROOT
from . import report, store
from .parts import SCALES, parts


def add_to(commands: argparse._SubParsersAction) -> None:
    """The subcommand ``study``."""
    parser = commands.add_parser(
        "study", help="LSTM or GRU: measure the textbooks' claims", description="LSTM or GRU: measure the textbooks' claims."
    )
    parser.set_defaults(command=run)
    parser.add_argument("--quick", action="store_true", help="small sizes: the whole study in a few minutes")
    parser.add_argument("--parts", default="", metavar="NAMES", help="comma-separated (default: all)")
    parser.add_argument("--out", type=Path, help="folder of the result files (default: out/study/<machine>)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after about this long; the same command goes on from there"
    )
    parser.add_argument("--report", type=Path, help="Markdown file to render to, plots beside it (default: <out>/report.md)")
    parser.add_argument("--render-only", action="store_true", help="measure nothing")
    parser.add_argument("--list", action="store_true", help="name the parts and what they lack, and measure nothing")


def run(options: argparse.Namespace) -> int:
    scale = SCALES["quick" if options.quick else "full"]
    folder = options.out or ROOT / "out" / "study" / machine.slug(machine.describe()["name"] + " quick" * options.quick)
    known = parts(scale)
    wanted = [name.strip() for name in options.parts.split(",") if name.strip()]
    unknown = set(wanted) - {part.name for part in known}
    if unknown:
        raise SystemExit(f"unknown parts {', '.join(sorted(unknown))}; known are {', '.join(part.name for part in known)}")
    if options.list:
        for part in known:
            done = (store.read(folder, part.name) or {"units": {}})["units"]
            alone = ", to be timed on an idle machine" if part.timed else ""
            print(f"{part.name}: {len(done)} of {len(part.units)} units{alone}")
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    finished = True
    if not options.render_only:
        for part in known:
            if not wanted or part.name in wanted:
                finished &= store.complete(part, folder, deadline, lambda line: print(line, flush=True))
        if not finished:
            print("stopped: run the same command again to go on")
            return 0
    results = {part.name: store.read_or_missing(part, folder) for part in known}
    file = options.report or folder / "report.md"
    report.write(results, file, folder)
    print(f"report: {file}")
    return 0
