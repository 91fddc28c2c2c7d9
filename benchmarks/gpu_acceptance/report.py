"""A run's files as Markdown: :func:`render` everything, :func:`summary` the half page that is printed last.

Nothing here needs torch or a GPU, and every part is rendered from what is there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .stage import Row, one_line, read_json

STAGES = ("machine", "parity", "repeatability", "speed", "tuning", "mechanisms", "peers", "profiles", "compiling")

Run = dict[str, dict[str, Any]]


def load(directory: Path) -> Run:
    """Stage -> its file's content, of those that are there."""
    found = {name: read_json(directory / f"{name}.json") for name in STAGES}
    return {name: content for name, content in found.items() if content is not None}


def render(directory: Path) -> str:
    """The whole report."""
    run = load(directory)
    parts = [_title(run), _stages(run)]
    for name, section in _SECTIONS.items():
        if name in run:
            parts += [f"## {name.capitalize()}", section(run[name])]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(directory: Path) -> str:
    """What one wants to know first."""
    run = load(directory)
    parts = [_title(run), _stages(run)]
    if "parity" in run:
        parts.append(_verdicts("Parity", run["parity"], "within_budget"))
    if "repeatability" in run:
        parts.append(_verdicts("Repeatability", run["repeatability"], "bitwise"))
    if "speed" in run:
        parts += [_speed_classes(run["speed"]), _losses(run["speed"], most=10)]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- the run -------------------------------------------------------------------------------------------------------------


def _title(run: Run) -> str:
    conditions = next((content["conditions"] for content in run.values() if content.get("conditions")), {})
    if not conditions:
        return "# GPU acceptance: nothing was measured"
    dry = " A dry run: its times mean nothing." if conditions["dry_run"] else ""
    return (
        f"# GPU acceptance on {conditions['machine']}\n\n{conditions['date']}, commit {conditions['commit'] or 'unknown'}, torch "
        f"{conditions['torch']}, Triton {conditions['triton']}, CUDA {conditions['cuda']}, cuDNN {conditions['cudnn']}.{dry}"
    )


def _stages(run: Run) -> str:
    rows = [
        [
            name,
            content["status"],
            f"{content['seconds']:.0f}",
            len(content["rows"]),
            len(content["skipped"]),
            one_line(content["reason"] or ""),
        ]
        for name, content in run.items()
    ]
    return _table(["stage", "status", "seconds", "rows", "left out", ""], rows)


def _failures(content: dict[str, Any]) -> str:
    """Rows that have an error, then those that could not be measured, each with its reason."""
    lines = [f"- **{row['key']}**: {one_line(row['error'])}" for row in content["rows"] if "error" in row]
    lines += [f"- {row['key']}: {one_line(row['unsupported'])}" for row in content["rows"] if "unsupported" in row]
    return "\n".join(lines)


# --- parity and repeatability --------------------------------------------------------------------------------------------


def _verdicts(title: str, content: dict[str, Any], verdict: str) -> str:
    """Counts, and every row that did not pass."""
    judged = [row for row in content["rows"] if verdict in row]
    wrong = [row for row in judged if not row[verdict]]
    errors = [row for row in content["rows"] if "error" in row]
    lines = [f"{title}: {len(judged) - len(wrong)} of {len(judged)} as they should be, {len(errors)} failed."]
    lines += [f"- {row['key']}: {_why(row)}" for row in wrong[:10]]
    lines += [f"- {row['key']}: {one_line(row['error'])}" for row in errors[:5]]
    return "\n".join(lines)


def _why(row: Row) -> str:
    if "worst" not in row:
        return f"{', '.join(row['differing'])} differ"
    worst = row["worst"]
    return (
        f"{row['share']:.2f} of the budget in {worst['result']} at {worst['at']}: {worst['actual']:.6g} instead of "
        f"{worst['exact']:.6g}; error {worst['error_eps']:.3g} eps, torch.nn's {worst['torch_error_eps']:.3g}"
    )


def _parity(content: dict[str, Any]) -> str:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in content["rows"]:
        if "within_budget" in row:
            groups.setdefault((row["case"]["cell"].upper(), row["precision"], row["schedule"]), []).append(row)
    rows = []
    for group, members in sorted(groups.items()):
        worst = max(members, key=lambda row: row["share"])
        spills = max((launch.get("n_spills") or 0 for row in members for launch in row["launches"]), default=0)
        within = sum(row["within_budget"] for row in members)
        rows.append([*group, f"{within} of {len(members)}", f"{worst['share']:.2f}", worst["worst"]["result"], spills])
    heads = ["cell", "precision", "schedule", "within budget", "worst share", "in", "spills"]
    return "\n\n".join([_verdicts("Parity", content, "within_budget"), _table(heads, rows), _failures(content)])


def _repeatability(content: dict[str, Any]) -> str:
    return "\n\n".join([_verdicts("Repeatability", content, "bitwise"), _failures(content)])


# --- speed ---------------------------------------------------------------------------------------------------------------


def _ratios(content: dict[str, Any], name: str = "plan") -> Iterator[tuple[Row, float]]:
    """Rows and how many times as fast as torch.nn a contestant's kernels are; by the host's clock where no graph was captured."""
    for row in content["rows"]:
        entry = row.get("results", {}).get(name, {})
        times = entry.get("kernel") or entry.get("wall")
        if times is not None:
            yield row, times["speedup"]


def _group(row: Row) -> tuple[str, str, str]:
    case = row["case"]
    variant = " both directions" * case["bidirectional"] + f" {case['num_layers']} layers" * (case["num_layers"] > 1)
    return case["cell"].upper() + variant, case["mode"], row["precision"]


def _speed_classes(content: dict[str, Any]) -> str:
    groups: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for row, ratio in _ratios(content):
        groups.setdefault(_group(row), []).append((ratio, f"H={row['case']['H']} B={row['case']['B']}"))
    rows = []
    for group, members in sorted(groups.items()):
        mean = statistics.geometric_mean([ratio for ratio, _ in members])
        low, high = min(members), max(members)
        rows.append([*group, len(members), f"{mean:.2f}", f"{low[0]:.2f} ({low[1]})", f"{high[0]:.2f} ({high[1]})"])
    heads = ["cell", "mode", "precision", "cases", "plan over torch.nn", "worst", "best"]
    return _table(heads, rows)


def _losses(content: dict[str, Any], most: int | None = None) -> str:
    losing = sorted((ratio, row["key"]) for row, ratio in _ratios(content) if ratio < 1)
    total = sum(1 for _ in _ratios(content))
    return "\n".join(
        [f"Slower than torch.nn in {len(losing)} of {total} cases.", *(f"- {r:.2f} {key}" for r, key in losing[:most])]
    )


def _speed(content: dict[str, Any]) -> str:
    schedules = ("program", "grid", "stepwise", "plan")
    rows = []
    for row in content["rows"]:
        if "results" not in row:
            continue
        entries = [row["results"].get(name, {}) for name in ("torch.nn", *schedules)]
        times = [_microseconds(entry, row["case"]["T"]) for entry in entries]
        plan, memory = row["results"].get("plan", {}), [_mebibytes(entries[0]), _mebibytes(entries[-1])]
        ratios = [f"{plan[kind]['speedup']:.2f}" if kind in plan else "" for kind in ("kernel", "wall")]
        case = row["case"]
        rows.append([*_group(row), case["H"], case["B"], "/".join(row["cudnn_algorithm"]), *times, *ratios, *memory])
    heads = ["cell", "mode", "precision", "H", "B", "cuDNN algorithm", "torch.nn, us per step", *schedules]
    heads += ["plan's ratio", "of wall time", "torch.nn, MiB", "plan, MiB"]
    failed = [
        f"- {row['key']}, {name}: {one_line(entry['error'])}"
        for row in content["rows"]
        for name, entry in row.get("results", {}).items()
        if "error" in entry
    ]
    note = (
        "Microseconds per step of kernel time, median (p20 to p80); w: of wall time; *: no graph was captured, pauses included."
    )
    return "\n\n".join([_speed_classes(content), _losses(content), note, _table(heads, rows), *failed, _failures(content)])


def _microseconds(entry: Row, steps: int) -> str:
    times, mark = (entry["kernel"], "*" * ("kernel_note" in entry)) if "kernel" in entry else (entry.get("wall"), "w")
    if times is None:
        return "failed" if "error" in entry else ""
    median, low, high = (times[name] / steps * 1e6 for name in ("median_s", "p20_s", "p80_s"))
    return f"{median:.2f}{mark} ({low:.2f} to {high:.2f})"


def _mebibytes(entry: Row) -> str:
    peak = entry.get("peak_memory_bytes")
    return "" if peak is None else f"{peak / 2**20:.0f}"


# --- the others ----------------------------------------------------------------------------------------------------------


def _machine(content: dict[str, Any]) -> str:
    lines = []
    for row in content["rows"]:
        facts = {key: value for key, value in row.items() if key not in ("key", "seconds")}
        lines.append(f"- **{row['key']}**: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    return "\n".join(lines)


def _tuning(content: dict[str, Any]) -> str:
    rows = [
        [row["key"], row["plan"], _named(row), f"{row['gain_over_plan']:.2f}" if row["gain_over_plan"] else ""]
        for row in content["rows"]
        if "fastest" in row
    ]
    table = _table(["layer", "plan's guess", "fastest", "gain"], rows)
    return "\n\n".join([table, _failures(content)])


def _named(row: Row) -> str:
    return min(row["times"], key=lambda entry: entry["median_s"])["tiling"]


def _mechanisms(content: dict[str, Any]) -> str:
    rows = [
        [row["key"], f"{row['median']:.4g}", f"{row['p20']:.4g} to {row['p80']:.4g}"]
        for row in content["rows"]
        if "median" in row
    ]
    return "\n\n".join([_table(["mechanism", "median", "p20 to p80"], rows), _failures(content)])


def _peers(content: dict[str, Any]) -> str:
    rows = []
    for row in content["rows"]:
        if "results" in row:
            times = [f"{row['results'][name]['median_s'] * 1e3:.3f}" for name in ("torch.nn", "plan", "peer")]
            rows.append([row["key"], *times])
    return "\n\n".join([_table(["case", "torch.nn, ms of wall time", "plan", "peer"], rows) if rows else "", _failures(content)])


def _profiles(content: dict[str, Any]) -> str:
    parts = [f"- {row['key']}: {'clean' if row['clean'] else 'not clean'}" for row in content["rows"] if "clean" in row]
    tables = ["\n".join([f"### {row['key']}", "", "```", *row["table"], "```"]) for row in content["rows"] if row.get("table")]
    return "\n\n".join(["\n".join(parts), *tables, _failures(content)])


_SECTIONS = {
    "machine": _machine,
    "parity": _parity,
    "repeatability": _repeatability,
    "speed": _speed,
    "tuning": _tuning,
    "mechanisms": _mechanisms,
    "peers": _peers,
    "profiles": _profiles,
}


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
