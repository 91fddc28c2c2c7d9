"""The command line: ``python -m benchmarks`` with run, report, compare, explain and targets."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from . import compare, explain, figures, grids, machine, providers, report, results, runner, targets, wall
from .arguments import at_least
from .cases import MODES, Case
from .study import command as study


class UsageError(Exception):
    """What was asked for makes no sense; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (UsageError, results.UnreadableResult, runner.OtherSettings, FileNotFoundError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


# --- run -------------------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no GPU is visible to torch")
    cases = _cases(options)
    settings = runner.Settings(
        seconds=options.seconds,
        min_rounds=options.min_rounds,
        threads=options.threads,
        seed=options.seed,
        cold_rounds=options.cold_rounds,
        memory=not options.no_memory,
        device=options.device,
        tf32=options.tf32,
    )
    torch.set_num_threads(settings.threads)  # before a peer starts its own
    out = options.out or report.ROOT / "out" / f"{machine.slug(machine.describe(options.device)['name'])}.json"
    earlier = results.load(out) if options.resume and out.exists() else None
    if options.again_above is not None:
        if not options.resume:
            raise UsageError("--again-above needs --resume: it is about the cases of an earlier run")
        if earlier is not None:
            earlier["cases"] = [row for row in earlier["cases"] if (row.get("others_share") or 0.0) <= options.again_above]
    contestants = [providers.make(name, settings.device) for name in options.providers]
    result = runner.run(cases, contestants, settings, earlier, lambda partial: results.save(partial, out))
    results.save(result, out)
    print(report.console(result))
    print(f"written to {out}")
    refused = runner.failures(result)
    for line in itertools.chain(*refused.values()):
        print(f"refused: {line}", file=sys.stderr)
    # A peer that rounds worse than torch.nn is no failure of this package.
    return 1 if any(name.startswith(providers.OURS) for name in refused) else 0


def _cases(options: argparse.Namespace) -> list[Case]:
    flags = {name: getattr(options, name) for name in ("cells", "modes", "T", "B", "H", "dtypes")}
    if any(value is not None for value in flags.values()):
        if options.grid is not None:
            raise UsageError(
                "--grid names a set of cases, and so do --cells, --modes, --dtypes, --T, --B and --H: give one or the other"
            )
        chosen = {name: value or _PRODUCT[name] for name, value in flags.items()}
        cases = list(grids.product(**chosen))
    else:
        cases = list(grids.GRIDS[options.grid or "small"]())
    cases = [case for case in cases if options.only in str(case)]
    if not cases:
        raise UsageError(f"no case contains {options.only!r}")
    return cases


# --- reading result files --------------------------------------------------------------------------------------------------


def _report(options: argparse.Namespace) -> int:
    result = results.load(options.file)
    drawn = figures.draw_all(options.file, result, options.figures) if options.figures else []
    text = report.render(result, [path.name for path in drawn])
    if options.figures:
        (options.figures / "report.md").write_text(text, encoding="utf-8")
        print(f"written to {options.figures}: report.md, {', '.join(path.name for path in drawn)}")
    else:
        print(text, end="")
    if options.update_readme:
        report.update_readme(options.file)
    if options.update_docs:
        report.update_documents()
    return 0


def _compare(options: argparse.Namespace) -> int:
    before, after = results.load(options.before), results.load(options.after)
    names = options.providers.split(",") if options.providers else None
    found = compare.changes(before, after, names, options.by)
    print(compare.render(before, after, found, options.by))
    if options.fail_above is None:
        return 0
    worse = compare.worse_than(found, options.fail_above)
    for change in worse:
        print(f"slower: {change.case}, {change.provider}: {change.ratio:.3f}", file=sys.stderr)
    return 1 if worse or not found else 0


def _explain(options: argparse.Namespace) -> int:
    case = Case(
        options.cell,
        options.mode,
        1 if options.mode == "streaming" else options.T,
        options.B,
        options.I or options.H,
        options.H,
        dtype=options.dtype,
        packed=options.packed,
        bidirectional=options.bidirectional,
        proj_size=options.proj_size,
        num_layers=options.layers,
    )
    if options.file is not None:
        result = results.load(options.file)
        rows = [row for row in result["cases"] if Case(**row["case"]) == case]
        if not rows:
            raise UsageError(f"{options.file} has no {case}")
        print(explain.render(result, rows[0]))
        return 0
    torch.set_num_threads(options.threads)
    contestants = [providers.make(name) for name in options.providers]
    settings = runner.Settings(options.seconds, 7, options.threads, seed=0, memory=False)
    result = runner.run([case], contestants, settings, quiet=True)
    print(explain.render(result, result["cases"][0]))
    own = [providers.make(name) for name in (providers.BASELINE, providers.OURS)]
    if parts := explain.parts(case):
        print(f"\n{explain.render_parts(runner.run(parts, own, settings, quiet=True)['cases'])}")
    if options.threads > 1:
        single = runner.run([case], own, replace(settings, threads=1), quiet=True)
        print(f"\n{explain.render_scaling(result['cases'][0], single['cases'][0], options.threads)}")
    return 0


def _targets(options: argparse.Namespace) -> int:
    result = results.load(options.file)
    print("\n\n".join([targets.table(result), targets.verdict(result), report.conditions(result), wall.describe(result["wall"])]))
    return 0


# --- arguments -------------------------------------------------------------------------------------------------------------

#: What a flag means that is not given when another is.
_PRODUCT = {
    "cells": ["lstm", "gru"],
    "modes": ["inference", "training"],
    "T": [100],
    "B": [1, 16],
    "H": [128],
    "dtypes": ["float32"],
}


def _listed(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        values = text.split(",")
        for value in values:
            if value not in choices:
                raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(choices)}")
        return values

    return parse


def _names(text: str) -> list[str]:
    """Providers. The baseline is always there: everything is relative to it."""
    names = [providers.BASELINE]
    for name in text.split(","):
        names += providers.CPU_PEERS if name == "peers" else _listed(providers.names())(name)
    return list(dict.fromkeys(names))


def _sizes(text: str) -> list[int]:
    values = [int(value) for value in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError("sizes are positive")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast the backends are, next to torch.nn.")
    commands = parser.add_subparsers(required=True)
    _add_run(commands.add_parser("run", help="measure, and write a result file"))

    show = commands.add_parser("report", help="render a result file as Markdown")
    show.set_defaults(command=_report)
    show.add_argument("file", type=Path)
    show.add_argument("--figures", type=Path, metavar="DIR", help="write report.md and its figures there instead")
    show.add_argument("--update-readme", action="store_true", help="render the README's table from this file, too")
    show.add_argument("--update-docs", action="store_true", help="render every document's tables anew, from the files they name")

    pair = commands.add_parser("compare", help="two result files side by side")
    pair.set_defaults(command=_compare)
    pair.add_argument("before", type=Path)
    pair.add_argument("after", type=Path)
    pair.add_argument("--providers", metavar="NAMES", help="only these")
    pair.add_argument("--by", choices=compare.BY, default="time", help="compare times, or speed-ups (for different machines)")
    pair.add_argument("--fail-above", type=float, metavar="RATIO", help="status 1 if a case is significantly slower than this")

    _add_explain(commands.add_parser("explain", help="how far one case is from what the machine can do, and why"))

    judge = commands.add_parser("targets", help="what a result file says of the project's targets")
    judge.set_defaults(command=_targets)
    judge.add_argument("file", type=Path)

    study.add_to(commands)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.set_defaults(command=_run)
    run.add_argument("--out", type=Path, help="result file, rewritten after every case (default: out/<machine>.json)")
    run.add_argument("--resume", action="store_true", help="take up the run whose result file is there")
    run.add_argument(
        "--again-above",
        type=float,
        metavar="SHARE",
        help="with --resume: measure cases again during which other processes took more than this share of the processors' time",
    )
    cases = run.add_argument_group("cases: a grid, or every combination of what the flags say")
    cases.add_argument("--grid", choices=grids.GRIDS, help="(default: small)")
    cases.add_argument("--cells", type=_listed(["lstm", "gru"]), metavar="NAMES")
    cases.add_argument("--modes", type=_listed(list(MODES)), metavar="NAMES", help=f"of {', '.join(MODES)}")
    cases.add_argument("--dtypes", type=_listed(["float32", "float64", "bfloat16", "float16"]), metavar="NAMES")
    cases.add_argument("--T", type=_sizes, metavar="STEPS")
    cases.add_argument("--B", type=_sizes, metavar="SIZES")
    cases.add_argument("--H", type=_sizes, metavar="SIZES", help="of the hidden state and the input")
    cases.add_argument("--only", default="", metavar="TEXT", help="only cases whose description contains this")
    how = run.add_argument_group("who and how")
    how.add_argument(
        "--providers",
        type=_names,
        default=providers.OURS,
        metavar="NAMES",
        help=f"of {', '.join(providers.names()[1:])}; peers is {', '.join(providers.CPU_PEERS)} (default: %(default)s)",
    )
    how.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    how.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        help="float32 products on a GPU in TF32, or not (default: as torch has it)",
    )
    how.add_argument("--seconds", type=float, default=0.3, help="per case and provider (default: %(default)s)")
    how.add_argument("--min-rounds", type=at_least(2), default=5, help="of each case (default: %(default)s)")
    how.add_argument("--cold-rounds", type=at_least(2), default=0, help="single calls after emptying the caches (default: none)")
    how.add_argument("--no-memory", action="store_true", help="do not measure peaks of memory")
    how.add_argument("--threads", type=at_least(1), default=torch.get_num_threads(), help="(default: torch's, %(default)s)")
    how.add_argument("--seed", type=int, default=0)


def _add_explain(why: argparse.ArgumentParser) -> None:
    why.set_defaults(command=_explain)
    why.add_argument("--file", type=Path, help="explain what this result file measured, instead of measuring now")
    why.add_argument("--cell", choices=["lstm", "gru"], default="lstm")
    why.add_argument("--mode", choices=list(MODES), default="inference")
    for name, default, help in (("T", 100, "steps"), ("B", 1, "sequences"), ("H", 128, "hidden size"), ("I", 0, "input size; H")):
        why.add_argument(f"--{name}", type=int, default=default, help=help)
    why.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    why.add_argument("--layers", type=int, default=1)
    why.add_argument("--proj-size", type=int, default=0)
    why.add_argument("--packed", action="store_true")
    why.add_argument("--bidirectional", action="store_true")
    why.add_argument("--providers", type=_names, default=providers.OURS, metavar="NAMES", help="as for run")
    why.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    why.add_argument("--seconds", type=float, default=0.5)


if __name__ == "__main__":
    sys.exit(main())
