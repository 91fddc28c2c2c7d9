"""A result file as Markdown: a summary by class, the losing cases, every case; and the summary in the README."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import wall
from .cases import Case
from .providers import OURS
from .results import Result, load, providers

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
#: The README's table stands between these two; the first one names the file it is rendered from.
_BEGIN, _END = "<!-- benchmark: {path} -->", "<!-- end of benchmark -->"
_BLOCK = re.compile(_BEGIN.format(path="(.+?)") + r"\n.*?" + _END, re.DOTALL)


def render(result: Result) -> str:
    """The whole report."""
    parts = [f"# {result['machine']['name']}", conditions(result), wall.describe(result["wall"]), *absences(result)]
    for provider in _contestants(result):
        parts += [f"## {provider}", summary(result, provider), losses(result, provider)]
    return "\n\n".join([*parts, "## Every case", every_case(result)]) + "\n"


def console(result: Result) -> str:
    """What a run prints when it is done."""
    parts = []
    for provider in _contestants(result):
        if any(_timed(result, provider)):
            parts.append(f"{provider}\n{summary(result, provider)}")
    parts += [losses(result, OURS)] * (OURS in _contestants(result))
    return "\n\n".join([*parts, *absences(result), wall.describe(result["wall"]), conditions(result)])


def absences(result: Result) -> list[str]:
    """Who was asked for and could not be measured, and why: nothing, or one paragraph."""
    reasons = [f"{name}: {reason}" for name, reason in result["absent"].items()]
    return [f"Not measured: {'; '.join(reasons)}."] if reasons else []


def conditions(result: Result) -> str:
    """One paragraph: on what, with what and how the figures were measured."""
    versions, settings = result["versions"], result["settings"]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    return (
        f"Measured on {result['machine']['name']} ({result['machine']['torch_isa']}), {threads}, torch "
        f"{versions['torch']}, commit {_short(result['commit'])}, {result['date']}. Each case: results checked against torch.nn "
        "first, then all providers interleaved in one process for at least "
        f"{settings['min_rounds']} rounds; a case's speed-up is the median of its rounds' ratios, a class's the geometric mean "
        f"of its cases. The machine's load average was {result['load_average_before']} before and "
        f"{result.get('load_average_after')} after."
    )


def summary(result: Result, provider: str) -> str:
    """The classes' geometric means with their worst and best case."""
    lines = ["| class | cases | speed-up over torch.nn | worst | best |", "|---|--:|--:|--:|--:|"]
    groups: dict[str, list[float]] = {}
    for row, entry in _timed(result, provider):
        groups.setdefault(row["group"], []).append(entry["speedup"])
    for group, speedups in groups.items():
        cells = map(_times, (statistics.geometric_mean(speedups), min(speedups), max(speedups)))
        lines.append(f"| {group} | {len(speedups)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losses(result: Result, provider: str) -> str:
    """The cases that are slower than torch.nn, worst first, then those that were not timed, each with its reason."""
    slower = sorted(
        (entry["speedup"], str(Case(**row["case"]))) for row, entry in _timed(result, provider) if entry["speedup"] < 1
    )
    missing = [
        (entry.get("error") or entry.get("unsupported"), str(Case(**row["case"])))
        for row in result["cases"]
        if "median_s" not in (entry := row["results"].get(provider, {}))
    ]
    total = len(result["cases"])
    lines = [f"Slower than torch.nn in {len(slower)} of {total} cases{':' if slower else '.'}", ""]
    lines += [f"- {_times(speedup)} {case}" for speedup, case in slower]
    lines += [f"- not timed: {case}: {reason}" for reason, case in missing]
    return "\n".join(lines).strip()


def every_case(result: Result) -> str:
    """Median and p20 to p80 of each case and provider, in milliseconds."""
    names = [result["baseline"], *_contestants(result)]
    lines = ["| case | " + " | ".join(f"{name}, ms" for name in names) + " |", "|---|" + "--:|" * len(names)]
    for row in result["cases"]:
        entries = [row["results"].get(name, {}) for name in names]
        cells = [f"{_ms(e['median_s'])} ({_ms(e['p20_s'])} to {_ms(e['p80_s'])})" if "median_s" in e else "—" for e in entries]
        lines.append(f"| {Case(**row['case'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- the README's table --------------------------------------------------------------------------------------------------


def readme_block(path: Path) -> str:
    """The README's table for one result file under the repository's root."""
    result = load(path)
    begin = _BEGIN.format(path=path.resolve().relative_to(ROOT).as_posix())
    return "\n".join([begin, _readme_table(result), "", conditions(result), "", _readme_losses(result), _END])


def update_readme(path: Path) -> None:
    """Render ``path`` into the README, in place of the table that is there."""
    text = README.read_text(encoding="utf-8")
    block = readme_block(path)
    updated, found = _BLOCK.subn(lambda _: block, text)
    if found != 1:
        raise ValueError(f"{README.name} has {found} places for a benchmark's table, expected one")
    README.write_text(updated, encoding="utf-8")


def readme_is_current() -> bool:
    """Whether the README's table is what its result file renders to."""
    found = _BLOCK.search(README.read_text(encoding="utf-8"))
    return found is not None and found[0] == readme_block(ROOT / found[1])


def _readme_table(result: Result) -> str:
    """Variants down, cell and mode across: geometric mean (worst case)."""
    speedups: dict[tuple[str, str], list[float]] = {}
    columns, variants = [], []
    for row, entry in _timed(result, OURS):
        case = Case(**row["case"])
        column = f"{case.cell.upper()} {case.mode}"
        columns += [column] * (column not in columns)
        variants += [case.variant] * (case.variant not in variants)
        speedups.setdefault((case.variant, column), []).append(entry["speedup"])
    lines = ["| speed-up (worst case) | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for variant in variants:
        cells = [
            f"{_times(statistics.geometric_mean(own))} ({_times(min(own))})" if (own := speedups.get((variant, column))) else ""
            for column in columns
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _readme_losses(result: Result) -> str:
    speedups = [entry["speedup"] for _, entry in _timed(result, OURS)]
    slower = sum(speedup < 1 for speedup in speedups)
    return f"Slower than torch.nn in {slower} of {len(speedups)} cases; `python -m benchmarks report` lists them."


# --- shared --------------------------------------------------------------------------------------------------------------


def _contestants(result: Result) -> list[str]:
    return providers(result)[1:]


def _timed(result: Result, provider: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for row in result["cases"]:
        entry = row["results"].get(provider, {})
        if "speedup" in entry:
            yield row, entry


def _times(speedup: float) -> str:
    return f"{speedup:.2f}×"  # noqa: RUF001  (a multiplication sign is meant)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _short(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    return commit[:9] + (" with changes" if commit.endswith("+") else "")
