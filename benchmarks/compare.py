"""Two result files side by side: ``python -m benchmarks compare BEFORE AFTER``.

For every case and provider that both files timed, the time after by the time before: above 1 is slower now. A difference is
significant if the middle of one file's rounds lies wholly beyond the middle of the other's, p20 to p80. Two runs never ran side
by side: what the machine did meanwhile is in the times. ``by="speedup"`` compares speed-ups over torch.nn instead, each measured
within its own run; files of two machines can be compared no other way.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .results import Result

BY = ("time", "speedup")


@dataclass(frozen=True)
class Change:
    """One case of one provider in both files. Ratios above 1 mean slower after."""

    case: Case
    provider: str
    before: float  # seconds, or a speed-up
    after: float
    ratio: float
    significant: bool


def changes(before: Result, after: Result, names: list[str] | None = None, by: str = "time") -> list[Change]:
    """All changes, the largest slow-down first; of the named providers, or of all that are in both files."""
    found = [
        change
        for case, first, second in _pairs(before, after)
        for name in first["results"]
        if names is None or name in names
        if (change := _change(case, name, first["results"][name], second["results"].get(name, {}), by)) is not None
        # A baseline's speed-up over itself is no news.
        if not (by == "speedup" and name == before["baseline"])
    ]
    return sorted(found, key=lambda change: -change.ratio)


def render(before: Result, after: Result, found: list[Change], by: str = "time") -> str:
    """Markdown: every provider's geometric mean, then every case."""
    if not found:
        return "The files have no case in common."
    lines = [*_differences(before, after), "| provider | cases | after / before | significantly slower | faster |"]
    lines.append("|---|--:|--:|--:|--:|")
    for name in dict.fromkeys(change.provider for change in found):
        own = [change for change in found if change.provider == name]
        mean = statistics.geometric_mean([change.ratio for change in own])
        slower = sum(change.significant and change.ratio > 1 for change in own)
        faster = sum(change.significant and change.ratio < 1 for change in own)
        lines.append(f"| {name} | {len(own)} | {mean:.3f} | {slower} | {faster} |")
    unit = "speed-up" if by == "speedup" else "ms"
    lines += ["", f"| case | provider | before, {unit} | after, {unit} | after / before | |", "|---|---|--:|--:|--:|---|"]
    for change in found:
        values = (f"{value if by == 'speedup' else 1e3 * value:.3g}" for value in (change.before, change.after))
        mark = ("slower" if change.ratio > 1 else "faster") if change.significant else "within the spread"
        lines.append(f"| {change.case} | {change.provider} | {' | '.join(values)} | {change.ratio:.3f} | {mark} |")
    return "\n".join(lines)


def worse_than(found: list[Change], limit: float) -> list[Change]:
    """The significant slow-downs beyond ``limit``, a ratio."""
    return [change for change in found if change.significant and change.ratio > limit]


def _pairs(before: Result, after: Result) -> Iterator[tuple[Case, Any, Any]]:
    second = {Case(**row["case"]): row for row in after["cases"]}
    for row in before["cases"]:
        case = Case(**row["case"])
        if case in second:
            yield case, row, second[case]


def _change(case: Case, name: str, first: dict[str, Any], second: dict[str, Any], by: str) -> Change | None:
    if "median_s" not in first or "median_s" not in second:
        return None
    if by == "speedup":
        keys = ("speedup", "speedup_p20", "speedup_p80")
        ratio = first["speedup"] / second["speedup"]
    else:
        keys = ("median_s", "p20_s", "p80_s")
        ratio = second["median_s"] / first["median_s"]
    (_, low, high), (_, other_low, other_high) = ([entry[key] for key in keys] for entry in (first, second))
    apart = high < other_low or other_high < low
    return Change(case, name, first[keys[0]], second[keys[0]], ratio, apart)


def _differences(before: Result, after: Result) -> list[str]:
    """What was not the same, as a warning."""
    different = [
        f"{what}: {first} before, {second} after"
        for what, first, second in (
            ("machine", before["machine"]["name"], after["machine"]["name"]),
            ("threads", before["settings"]["threads"], after["settings"]["threads"]),
            ("torch", before["versions"]["torch"], after["versions"]["torch"]),
        )
        if first != second
    ]
    return [f"Not the same: {'; '.join(different)}.", ""] if different else []
