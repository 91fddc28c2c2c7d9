"""What the documents show of a run: how many times as fast as torch.nn (cuDNN) the CUDA kernels are, as a table and a picture in
the README, and how long their steps take.

Nothing here needs torch or a GPU. The picture is an SVG that is written out here: the same file gives the same characters, so
that a test can tell a stale one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from .stage import Row

#: Where the README's picture lies, under the repository's root.
FIGURE = "docs/gpu-speed.svg"

#: What the README is about, and what it says of both backends.
_PLAN = "cuda plan"
_NAMES = {_PLAN: "CUDA kernels", "triton plan": "Triton kernels"}
#: Key of a time in the file -> what the table calls it.
_CLOCKS = {"kernel": "kernels", "wall": "wall time"}
_PRECISIONS = {"tf32": "float32 in TF32", "ieee": "float32"}

Content = dict[str, Any]


def speedups(content: Content) -> Iterator[tuple[str, str, float]]:
    """Line, column and speed-up of each case by each clock: a line is a precision and a clock, a column a cell and a mode."""
    for row in sorted(content["rows"], key=lambda row: row["case"]["cell"], reverse=True):  # LSTM first, as everywhere
        for clock, name in _CLOCKS.items():
            if (ratio := _ratio(row, _PLAN, clock)) is not None:
                yield f"{_precision(row)}, {name}", _layer(row), ratio


def conditions(content: Content) -> str:
    """On what and how it was measured, in one paragraph without characters that XML would read as its own."""
    cases = [row["case"] for _, row in _cases(content, _PLAN)]
    widths, batches, steps = (sorted({case[size] for case in cases}) for size in ("H", "B", "T"))
    return (
        f"{_measured_on(content)}: "
        f"{len(cases)} cases, whole layers with the input's projection, H {_range(widths)}, B {_range(batches)}, {_range(steps)} "
        "steps, all contestants interleaved in one process. Kernels: the device's clock around a replayed CUDA graph. "
        "Wall time: the host's clock around eager calls."
    )


def verdict(content: Content) -> str:
    """Each backend's means, losing cases and worst case, in one paragraph."""
    sentences = []
    for plan, name in _NAMES.items():
        cases = _cases(content, plan)
        if not cases:
            continue
        modes: dict[str, list[float]] = {}
        for ratio, row in cases:
            modes.setdefault(row["case"]["mode"], []).append(ratio)
        means = ", ".join(f"{mode} {_times(statistics.geometric_mean(ratios))}" for mode, ratios in modes.items())
        slower = sum(ratio < 1 for ratio, _ in cases)
        worst, row = min(cases, key=lambda case: case[0])
        sentences.append(
            f"{name}: {means}; slower than torch.nn in {slower} of {len(cases)} cases, at worst {_times(worst)} ({_place(row)})."
        )
    return " ".join(sentences)


def losses(content: Content) -> str:
    """The cases in which the CUDA kernels are slower, the worst first, with the algorithm that torch asks cuDNN for."""
    lines = ["| speed-up | case | what torch asks cuDNN for |", "|--:|---|---|"]
    for ratio, row in sorted(_cases(content, _PLAN), key=lambda case: case[0]):
        if ratio < 1:
            algorithms = ", ".join(f"`{name}`" for name in dict.fromkeys(row["cudnn_algorithm"]))
            lines.append(f"| {_times(ratio)} | {_place(row)} | {algorithms} |")
    return "\n".join(lines)


# --- steps -----------------------------------------------------------------------------------------------------------------

#: Which of a tuning's layers the table of steps has.
_STEPS = (("lstm", "bfloat16"), ("lstm", "tf32"), ("lstm", "ieee"), ("gru", "bfloat16"), ("gru", "tf32"))
#: What marks the schedule that was the fastest, where it does not keep the weights in one CTA or cluster.
_MARKS = {"grid": "g", "stepwise": "*"}


def steps(content: Content) -> str:
    """H down, cell, precision and pass across: microseconds per step of the fastest schedule for each batch, from the stage
    tuning."""
    cells: dict[tuple[int, tuple[str, str, bool]], dict[int, str]] = {}
    for row in content["rows"]:
        case = row["case"]
        if row["backend"] == "cuda" and "fastest" in row and not case["bidirectional"]:
            fastest = min(row["times"], key=lambda entry: entry["median_s"])
            microseconds = f"{fastest['median_s'] / case['T'] * 1e6:#.2g}".removesuffix(".")
            text = microseconds + _MARKS.get(fastest["choice"]["schedule"], "")
            cells.setdefault((case["H"], (case["cell"], row["precision"], row["backward"])), {})[case["B"]] = text
    batches = sorted({batch for own in cells.values() for batch in own})
    columns = [(cell, precision, backward) for cell, precision in _STEPS for backward in (False, True)]
    heads = [
        "backward" if backward else f"{cell.upper()} {_PRECISIONS.get(precision, precision)} forward"
        for cell, precision, backward in columns
    ]
    lines = [f"| H | {' | '.join(heads)} |", "|---|" + "---|" * len(columns)]
    for width in sorted({width for width, _ in cells}):
        texts = ["/".join(cells.get((width, column), {}).get(batch, "-") for batch in batches) for column in columns]
        lines.append(f"| {width} | {' | '.join(texts)} |")
    return "\n".join(lines)


def steps_conditions(content: Content) -> str:
    """What the table of steps shows and how that was measured, in one paragraph."""
    cases = [row["case"] for row in content["rows"] if row["backend"] == "cuda" and "fastest" in row]
    batches, lengths = (sorted({case[size] for case in cases}) for size in ("B", "T"))
    return (
        f"{_measured_on(content)}: one direction, batches of {' / '.join(map(str, batches))}, the fastest schedule of each; "
        f"g: grid, *: stepwise, -: not timed. Whole passes of {_range(lengths)} steps from CUDA graphs, with the products for "
        "all steps; forward saves what backward needs, backward computes every gradient."
    )


# --- the picture -----------------------------------------------------------------------------------------------------------

_LEFT, _TOP, _WIDTH, _HEIGHT = 226, 62, 46, 20  # of the labels, and of one case, in pixels
_SLOWER, _EQUAL, _FASTER = (178, 24, 43), (247, 247, 247), (33, 102, 172)


def heat_map(content: Content) -> str:
    """The kernels' speed-up of every case, H and B across, precision, cell and mode down."""
    cases: dict[tuple[str, tuple[int, int]], float] = {}
    for ratio, row in _cases(content, _PLAN):
        cases[f"{_layer(row)}, {_precision(row)}", (row["case"]["H"], row["case"]["B"])] = ratio
    lines = list(dict.fromkeys(line for line, _ in cases))
    sizes = sorted({size for _, size in cases})
    width, height = _LEFT + _WIDTH * len(sizes) + 8, _TOP + _HEIGHT * len(lines) + 8
    title = f"CUDA kernels' speed-up over cuDNN, {content['conditions']['machine']}, kernel time"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f"<title>{title}</title>",
        f"<desc>{conditions(content)}</desc>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="13">{title}</text>',
    ]
    for place, name in ((_TOP - 24, "H"), (_TOP - 8, "B")):
        parts.append(_text(_LEFT - 8, place, name, "end"))
    for column, size in enumerate(sizes):
        middle = _LEFT + _WIDTH * column + _WIDTH // 2
        parts += [_text(middle, _TOP - 24, size[0]), _text(middle, _TOP - 8, size[1])]
    for line, label in enumerate(lines):
        top = _TOP + _HEIGHT * line
        parts.append(_text(_LEFT - 8, top + 14, label, "end"))
        for column, size in enumerate(sizes):
            if (label, size) in cases:
                parts += _case(_LEFT + _WIDTH * column, top, cases[label, size])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _case(left: int, top: int, ratio: float) -> list[str]:
    """A coloured field with its number: white is as fast, full colour eight times faster or slower."""
    share = max(-1.0, min(1.0, math.log2(ratio) / 3))
    full = _FASTER if share > 0 else _SLOWER
    colour = "#" + "".join(f"{round(a + (b - a) * abs(share)):02x}" for a, b in zip(_EQUAL, full, strict=True))
    field = f'<rect x="{left}" y="{top}" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" fill="{colour}"/>'
    return [field, _text(left + _WIDTH // 2, top + 14, f"{ratio:.2f}", colour="white" if abs(share) > 0.6 else "black")]


def _text(x: int, y: int, text: object, anchor: str = "middle", colour: str = "black") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


# --- shared ----------------------------------------------------------------------------------------------------------------


def _measured_on(content: Content) -> str:
    run = content["conditions"]
    commit = (run["commit"] or "unknown").replace("+", " with changes")
    major, minor = divmod(run["cudnn"] // 100, 100)
    return f"Measured on one {run['machine']}, torch {run['torch']}, cuDNN {major}.{minor}, commit {commit}, {run['date']}"


def _ratio(row: Row, plan: str, clock: str = "kernel") -> float | None:
    """How many times as fast as torch.nn, or None where it was not timed."""
    times = row.get("results", {}).get(plan, {}).get(clock)
    return None if times is None else times["speedup"]


def _cases(content: Content, plan: str) -> list[tuple[float, Row]]:
    return [(ratio, row) for row in content["rows"] if (ratio := _ratio(row, plan)) is not None]


def _place(row: Row) -> str:
    return f"{_layer(row)}, {_precision(row)}, H={row['case']['H']} B={row['case']['B']}"


def _layer(row: Row) -> str:
    return f"{row['case']['cell'].upper()} {row['case']['mode']}"


def _precision(row: Row) -> str:
    """With what makes the layer another than one dense layer of one direction."""
    case = row["case"]
    variants = {"both directions": case["bidirectional"], "packed": case["packed"]}
    variants[f"{case['num_layers']} layers"] = case["num_layers"] > 1
    return " ".join([_PRECISIONS.get(row["precision"], row["precision"]), *(name for name, has in variants.items() if has)])


def _range(values: list[int]) -> str:
    return f"{values[0]} to {values[-1]}" if len(values) > 1 else str(values[0])


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"  # noqa: RUF001  (a multiplication sign is meant)
