"""The command line: ``python -m benchmarks run`` and ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import machine, providers, report, runner
from .cases import GRIDS
from .study import command as study


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return options.command(options)


def _run(options: argparse.Namespace) -> int:
    cases = [case for case in GRIDS[options.grid]() if options.only in str(case)]
    if not cases:
        print(f"no case of the grid {options.grid!r} contains {options.only!r}", file=sys.stderr)
        return 2
    settings = runner.Settings(options.seconds, options.min_rounds, options.threads, options.seed)
    # The baseline is always there: everything is relative to it.
    names = dict.fromkeys([providers.BASELINE, *options.providers.split(",")])
    result = runner.run(cases, [providers.make(name) for name in names], settings)
    out = options.out or report.ROOT / "out" / f"{machine.slug(result['machine']['name'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for provider in list(names)[1:]:
        print(f"\n{provider}\n{report.summary(result, provider)}\n\n{report.losses(result, provider)}")
    print(f"\n{report.conditions(result)}\nwritten to {out}")
    refused = runner.failures(result)
    for line in refused:
        print(f"refused: {line}", file=sys.stderr)
    return 1 if refused else 0


def _report(options: argparse.Namespace) -> int:
    print(report.render(json.loads(options.file.read_text(encoding="utf-8"))), end="")
    if options.update_readme:
        report.update_readme(options.file)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast the backends are, next to torch.nn.")
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="measure, and write a result file")
    run.set_defaults(command=_run)
    run.add_argument("--out", type=Path, help="result file (default: out/<machine>.json)")
    run.add_argument("--grid", choices=GRIDS, default="small")
    run.add_argument("--only", default="", metavar="TEXT", help="only cases whose description contains this")
    run.add_argument(
        "--providers",
        default=providers.OURS,
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(providers.names()[1:])} (default: %(default)s)",
    )
    run.add_argument("--seconds", type=float, default=1.0, help="per case and provider (default: %(default)s)")
    run.add_argument("--min-rounds", type=int, default=9, help="of each case (default: %(default)s)")
    run.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: torch's, %(default)s)")
    run.add_argument("--seed", type=int, default=0)

    show = commands.add_parser("report", help="render a result file as Markdown")
    show.set_defaults(command=_report)
    show.add_argument("file", type=Path)
    show.add_argument("--update-readme", action="store_true", help="render the README's table from this file, too")

    study.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
