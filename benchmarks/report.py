"""A result file as Markdown: a summary by class, the losing cases, every case; and the summary in the README."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import targets, wall
from .cases import Case
from .gpu_acceptance import documents as gpu
from .gpu_acceptance.stage import read_json
from .providers import OURS
from .results import Result, Row, load, providers, refused, timed, times_faster

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
#: A rendered table stands between two such lines; the first one says what it is and names the file it is rendered from.
_BLOCK = re.compile(r"<!-- (benchmark|targets|gpu|gpu-losses|gpu-steps): (\S+) -->\n.*?<!-- end of \1 -->", re.DOTALL)


def render(result: Result, figures: Sequence[str] = ()) -> str:
    """The whole report; ``figures`` are files to show, beside it."""
    parts = [f"# {result['machine']['name']}", conditions(result), wall.describe(result["wall"]), *absences(result)]
    parts += [f"![{name.partition('.')[0]}]({name})" for name in figures]
    for provider in _contestants(result):
        parts += [f"## {provider}", summary(result, provider), losses(result, provider)]
    peers = [name for name in _contestants(result) if not name.startswith(OURS)]
    if peers and OURS in _contestants(result):
        parts += [f"## {OURS} against its peers", against(result, peers)]
    parts += ["## Every case", every_case(result)]
    if result["schema"] > 1:
        parts += ["## The wall, cold caches, memory", details(result)]
    return "\n\n".join(parts) + "\n"


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
        f"{result.get('load_average_after')} after.{_others(result)}"
    )


def _others(result: Result) -> str:
    """What other processes took of the processors, as a sentence, where it was measured."""
    shares = [row["others_share"] for row in result["cases"] if row.get("others_share") is not None]
    if not shares:
        return ""
    mean, most = (round(100 * share) for share in (statistics.mean(shares), max(shares)))
    return f" Other processes took {mean} % of the processors' time, in the worst case {most} %."


def summary(result: Result, provider: str) -> str:
    """The classes' geometric means with their worst and best case, and of the wall the share, from the lowest to the highest."""
    lines = ["| class | cases | speed-up over torch.nn | worst | best | of the wall |", "|---|--:|--:|--:|--:|--:|"]
    groups: dict[str, list[Row]] = {}
    for row, _ in _timed(result, provider):
        groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        speedups = [row["results"][provider]["speedup"] for row in rows]
        cells = [_times(value) for value in (statistics.geometric_mean(speedups), min(speedups), max(speedups))]
        shares = [share for row in rows if (share := wall.share(row, provider)) is not None]
        cells.append(f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %" if shares else "")
        lines.append(f"| {group} | {len(speedups)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against(result: Result, peers: Sequence[str]) -> str:
    """How many times less time ours takes than each peer, by class: geometric mean (worst case)."""
    groups: dict[str, dict[str, list[float]]] = {}
    for peer in peers:
        for _, row in timed(result, OURS, peer):
            groups.setdefault(row["group"], {}).setdefault(peer, []).append(times_faster(row, OURS, peer))
    lines = ["| class | " + " | ".join(peers) + " |", "|---|" + "--:|" * len(peers)]
    for group, own in groups.items():
        cells = [f"{_times(statistics.geometric_mean(own[p]))} ({_times(min(own[p]))})" if p in own else "" for p in peers]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losses(result: Result, provider: str) -> str:
    """The cases that are slower than torch.nn, worst first, then those that were not timed, each with its reason."""
    slower = sorted(
        (entry["speedup"], str(Case(**row["case"]))) for row, entry in _timed(result, provider) if entry["speedup"] < 1
    )
    missing: dict[str, list[str]] = {}
    for row in result["cases"]:
        entry = row["results"].get(provider, {})
        if "median_s" not in entry:
            reason = entry.get("error") or entry.get("unsupported") or "not measured"
            missing.setdefault(reason, []).append(str(Case(**row["case"])))
    total = len(result["cases"])
    lines = [f"Slower than torch.nn in {len(slower)} of {total} cases{':' if slower else '.'}", ""]
    lines += [f"- {_times(speedup)} {case}" for speedup, case in slower]
    for reason, cases in missing.items():
        which = cases[0] if len(cases) == 1 else f"{len(cases)} cases, the first of them {cases[0]}"
        lines.append(f"- not timed: {which}: {reason}")
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


def details(result: Result) -> str:
    """Of each case: what torch.nn ran, shares of the wall, the median with cold caches, kernel time on a GPU, peaks of memory."""
    names = [name for name in (result["baseline"], OURS) if name in providers(result)]
    measured = [
        name for row in result["cases"] for entry in row["results"].values() for name in ("cold", "kernel") if name in entry
    ]
    columns = [f"{name}, % of the wall" for name in names]
    columns += [f"{name}, {what}, ms" for what in dict.fromkeys(measured) for name in names]
    columns += [f"{name}, MiB" for name in names]
    lines = ["| case | torch.nn ran | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns)]
    for row in result["cases"]:
        entries = [row["results"].get(name, {}) for name in names]
        shares = (wall.share(row, name) for name in names)
        cells = ["" if share is None else f"{100 * share:.0f}" for share in shares]
        times = (entry.get(what, {}).get("median_s") for what in dict.fromkeys(measured) for entry in entries)
        cells += ["" if seconds is None else _ms(seconds) for seconds in times]
        cells += [f"{entry['peak_bytes'] / 2**20:.1f}" if entry.get("peak_bytes") else "" for entry in entries]
        lines.append(f"| {Case(**row['case'])} | {row['baseline_kernel'] or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- tables in the documents -------------------------------------------------------------------------------------------------


def block(kind: str, name: str) -> str:
    """The table of that kind, one of :data:`_TABLES`, for the result file of that name under the repository's root."""
    paragraphs = "\n\n".join(_TABLES[kind](ROOT / name))
    return f"<!-- {kind}: {name} -->\n{paragraphs}\n<!-- end of {kind} -->"


def update_readme(path: Path, kind: str = "benchmark") -> None:
    """Render ``path`` into the README, in place of the table of that kind that is there."""
    text, name = README.read_text(encoding="utf-8"), path.resolve().relative_to(ROOT).as_posix()
    places = [match for match in _BLOCK.finditer(text) if match[1] == kind]
    if len(places) != 1:
        raise ValueError(f"{README.name} has {len(places)} places for a table of the kind {kind}, expected one")
    begin, end = places[0].span()
    README.write_text(text[:begin] + block(kind, name) + text[end:], encoding="utf-8")


def update_documents() -> None:
    """Render every table in the documents anew, from the file that it names."""
    for document in documents():
        text = document.read_text(encoding="utf-8")
        document.write_text(_BLOCK.sub(lambda match: block(match[1], match[2]), text), encoding="utf-8")


def documents() -> list[Path]:
    """Where rendered tables may stand."""
    return [README, *sorted((ROOT / "docs").glob("*.md"))]


def stale_tables(document: Path) -> list[str]:
    """The files whose table in the document is not what they render to."""
    found = _BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [match[2] for match in found if match[0] != block(match[1], match[2])]


def _benchmark(path: Path) -> list[str]:
    result = load(path)
    return [_readme_table(_readme_speedups(result)), conditions(result), _readme_losses(result)]


def _targets(path: Path) -> list[str]:
    result = load(path)
    return [targets.table(result), conditions(result), f"{targets.verdict(result)} {wall.describe(result['wall'])}"]


def _gpu(path: Path) -> list[str]:
    content = read_json(path)
    picture = f"![Speed-up over cuDNN, every case]({gpu.FIGURE})"
    return [_readme_table(gpu.speedups(content)), f"{gpu.verdict(content)} {gpu.conditions(content)}", picture]


def _gpu_losses(path: Path) -> list[str]:
    content = read_json(path)
    return [gpu.verdict(content), gpu.losses(content)]


def _gpu_steps(path: Path) -> list[str]:
    content = read_json(path)
    return [gpu.steps(content), gpu.steps_conditions(content)]


#: Kind of a table in the documents -> the paragraphs that a result file renders to.
_TABLES: dict[str, Callable[[Path], list[str]]] = {
    "benchmark": _benchmark,
    "targets": _targets,
    "gpu": _gpu,
    "gpu-losses": _gpu_losses,
    "gpu-steps": _gpu_steps,
}


def _readme_speedups(result: Result) -> Iterator[tuple[str, str, float]]:
    """Variants down, cell and mode across."""
    for row, entry in _timed(result, OURS):
        case = Case(**row["case"])
        yield case.variant, f"{case.cell.upper()} {case.mode}", entry["speedup"]


def _readme_table(speedups: Iterable[tuple[str, str, float]]) -> str:
    """Of lines, columns and speed-ups: geometric mean (worst case)."""
    cells: dict[tuple[str, str], list[float]] = {}
    for line, column, speedup in speedups:
        cells.setdefault((line, column), []).append(speedup)
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = ["| speed-up (worst case) | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for line in dict.fromkeys(line for line, _ in cells):
        texts = [
            f"{_times(statistics.geometric_mean(own))} ({_times(min(own))})" if (own := cells.get((line, column))) else ""
            for column in columns
        ]
        lines.append(f"| {line} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _readme_losses(result: Result) -> str:
    speedups = [entry["speedup"] for _, entry in _timed(result, OURS)]
    slower = sum(speedup < 1 for speedup in speedups)
    wrong = refused(result, OURS)
    gate = f" Not timed, because an error was above its budget: {'; '.join(wrong)}." if wrong else ""
    return f"Slower than torch.nn in {slower} of {len(speedups)} cases; `python -m benchmarks report` lists them.{gate}"


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
