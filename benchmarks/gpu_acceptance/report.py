"""A run's files as Markdown: :func:`render` everything, :func:`summary` the half page that is printed last.

Nothing here needs torch or a GPU, and every part is rendered from what is there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .stage import Row, one_line, read_json

STAGES = ("machine", "build", "parity", "repeatability", "speed", "tuning", "mechanisms", "peers", "profiles", "compiling")

#: Contestants of the stages speed and peers, as they are listed: plans, with their ratios, then schedules.
_PLANS = ("cuda plan", "triton plan")
_SCHEDULES = (
    *("cuda one CTA", "cuda cluster", "cuda grid", "cuda stepwise"),
    *("triton program", "triton grid", "triton stepwise"),
)

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
    kernels = [content["conditions"].get("cuda_kernels", "built") for content in run.values() if content["stage"] == "parity"]
    missing = "".join(f" Without the CUDA kernels: {one_line(reason)}." for reason in kernels if reason != "built")
    return (
        f"# GPU acceptance on {conditions['machine']}\n\n{conditions['date']}, commit {conditions['commit'] or 'unknown'}, torch "
        f"{conditions['torch']}, Triton {conditions['triton']}, CUDA {conditions['cuda']}, cuDNN {conditions['cudnn']}."
        f"{missing}{dry}"
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


def _ratios(content: dict[str, Any], name: str) -> Iterator[tuple[Row, float]]:
    """Rows and how many times as fast as torch.nn a contestant's kernels are; by the host's clock where no graph was captured."""
    for row in content["rows"]:
        entry = row.get("results", {}).get(name, {})
        times = entry.get("kernel") or entry.get("wall")
        if times is not None:
            yield row, times["speedup"]


def _group(row: Row) -> tuple[str, str, str]:
    case = row["case"]
    variant = " both directions" * case["bidirectional"] + f" {case['num_layers']} layers" * (case["num_layers"] > 1)
    variant += " packed" * case["packed"]
    return case["cell"].upper() + variant, case["mode"], row["precision"]


def _speed_classes(content: dict[str, Any]) -> str:
    rows = []
    for plan in _PLANS:
        groups: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
        for row, ratio in _ratios(content, plan):
            place = (ratio, f"H={row['case']['H']} B={row['case']['B']}")
            groups.setdefault(_group(row), []).append(place)
            groups.setdefault(("all", row["case"]["mode"], ""), []).append(place)
        for group, members in sorted(groups.items()):
            mean = statistics.geometric_mean([ratio for ratio, _ in members])
            low, high = min(members), max(members)
            rows.append([plan, *group, len(members), f"{mean:.2f}", f"{low[0]:.2f} ({low[1]})", f"{high[0]:.2f} ({high[1]})"])
    heads = ["", "cell", "mode", "precision", "cases", "speed-up over torch.nn", "worst", "best"]
    return _table(heads, rows)


def _losses(content: dict[str, Any], most: int | None = None) -> str:
    """What each plan is slower at than torch.nn, the worst first."""
    parts = []
    for plan in _PLANS:
        ratios = [(ratio, row["key"]) for row, ratio in _ratios(content, plan)]
        losing = sorted(ratio for ratio in ratios if ratio[0] < 1)
        if ratios:
            parts.append(f"The {plan} is slower than torch.nn in {len(losing)} of {len(ratios)} cases.")
            parts += [f"- {ratio:.2f} {key}" for ratio, key in losing[:most]]
    return "\n".join(parts)


def _speed(content: dict[str, Any]) -> str:
    measured = [row for row in content["rows"] if "results" in row]
    named = {name for row in measured for name in row["results"]}
    plans, schedules = ([name for name in names if name in named] for names in (_PLANS, _SCHEDULES))
    rows = []
    for row in measured:
        results, case = row["results"], row["case"]
        cells = [*_group(row), case["H"], case["B"], "/".join(row["cudnn_algorithm"])]
        cells += [_microseconds(results.get(name, {}), case["T"]) for name in ("torch.nn", *plans)]
        cells += [_median(results.get(name, {}), case["T"]) for name in (*schedules, "products")]
        for plan in plans:
            cells += [f"{times['speedup']:.2f}" if times else "" for times in _both_clocks(results.get(plan, {}))]
        rows.append([*cells, *(_mebibytes(results.get(name, {})) for name in ("torch.nn", *plans))])
    heads = ["cell", "mode", "precision", "H", "B", "cuDNN algorithm", "torch.nn, us per step", *plans, *schedules, "products"]
    heads += [f"{plan}'s ratio{clock}" for plan in plans for clock in ("", ", of wall time")]
    heads += [f"{name}, MiB" for name in ("torch.nn", *plans)]
    failed = [
        f"- {row['key']}, {name}: {one_line(entry['error'])}"
        for row in content["rows"]
        for name, entry in row.get("results", {}).items()
        if "error" in entry
    ]
    note = (
        "Microseconds per step of kernel time, median (p20 to p80); w: of wall time; *: no graph was captured, pauses included. "
        "Products are those of a layer that are not part of its recurrence: less their time, a column is the recurrence alone."
    )
    return "\n\n".join([_speed_classes(content), _losses(content), note, _table(heads, rows), *failed, _failures(content)])


def _microseconds(entry: Row, steps: int) -> str:
    times, mark = (entry["kernel"], "*" * ("kernel_note" in entry)) if "kernel" in entry else (entry.get("wall"), "w")
    if times is None:
        return "failed" if "error" in entry else ""
    median, low, high = (times[name] / steps * 1e6 for name in ("median_s", "p20_s", "p80_s"))
    return f"{median:.2f}{mark} ({low:.2f} to {high:.2f})"


def _median(entry: Row, steps: int) -> str:
    return _microseconds(entry, steps).split(" ")[0]


def _both_clocks(entry: Row) -> list[Row | None]:
    return [entry.get("kernel"), entry.get("wall")]


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


def _build(content: dict[str, Any]) -> str:
    lines = []
    for row in content["rows"]:
        if "built" in row:
            cuda = row.get("cuda") or {}
            where = f" for {cuda['architectures']} with {row['cores']} cores" if cuda else ""
            lines.append(f"- {row['key']}: built {row['built']}{where}, {row['seconds']:.0f} s")
    return "\n\n".join(["\n".join(lines), _failures(content)])


def _tuning(content: dict[str, Any]) -> str:
    rows = []
    for row in content["rows"]:
        if "fastest" in row:
            fastest = min(row["times"], key=lambda entry: entry["median_s"])
            microseconds = fastest["median_s"] / row["case"]["T"] * 1e6
            estimate = fastest.get("estimated_us_per_step")
            gain = f"{row['gain_over_plan']:.2f}" if row["gain_over_plan"] else ""
            cells = [row["key"], row["plan"], fastest["name"], gain, f"{microseconds:.2f}"]
            rows.append([*cells, f"{estimate:.2f}" if estimate else ""])
    heads = ["layer", "plan's guess", "fastest", "gain", "us per step, products included", "estimated, without"]
    return "\n\n".join([_table(heads, rows), _failures(content)])


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
            results = row["results"]
            times = [f"{results[n]['median_s'] * 1e3:.3f}" if n in results else "" for n in ("torch.nn", *_PLANS, "peer")]
            rows.append([row["key"], *times])
    return "\n\n".join([_table(["case", "torch.nn, ms of wall time", *_PLANS, "peer"], rows), _failures(content)])


def _profiles(content: dict[str, Any]) -> str:
    parts = [f"- {row['key']}: {'clean' if row['clean'] else 'not clean'}" for row in content["rows"] if "clean" in row]
    tables = ["\n".join([f"### {row['key']}", "", "```", *row["table"], "```"]) for row in content["rows"] if row.get("table")]
    return "\n\n".join(["\n".join(parts), *tables, _failures(content)])


_SECTIONS = {
    "machine": _machine,
    "build": _build,
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
