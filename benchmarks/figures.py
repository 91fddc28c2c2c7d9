"""A result file as pictures: speed-up over H and B, time per step against T, and the roofline with its serial steps.

Each PNG carries what it was drawn from (:data:`SOURCE`), so that a test can tell a stale one without drawing it anew.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import flops
from .cases import Case
from .providers import OURS
from .results import Result, Row, providers, timed, times_faster

#: The PNG text field that names the result file's contents and this code, as digests.
SOURCE = "Source"


class NothingToDraw(ValueError):
    """The result has no case a figure is about."""


def draw_all(path: Path, result: Result, folder: Path) -> list[Path]:
    """Every figure that ``result``, read from ``path``, has cases for, as PNGs in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        try:
            figure = draw(result)
        except NothingToDraw:
            continue
        target = folder / f"{name}.png"
        figure.savefig(target, dpi=100, metadata={SOURCE: source(path)})
        written.append(target)
    return written


def source(path: Path) -> str:
    """Digests of a result file and of this module."""
    digests = (hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in (path, Path(__file__)))
    return " ".join(digests)


def source_of(figure: Path) -> str | None:
    """What a PNG says it was drawn from."""
    from PIL import Image

    with Image.open(figure) as image:
        return image.info.get(SOURCE)


# --- heat maps -------------------------------------------------------------------------------------------------------------


def speedups(result: Result) -> Any:
    """Speed-up over the baseline for every H and B, dense float32 cases, the geometric mean over T; a panel for cell and mode."""
    panels: dict[str, dict[tuple[int, int], list[float]]] = {}
    for case, row in timed(result, OURS, result["baseline"]):
        if case.variant == "dense" and case.mode != "streaming":
            cells = panels.setdefault(f"{case.cell.upper()} {case.mode}", {})
            cells.setdefault((case.H, case.B), []).append(times_faster(row, OURS, result["baseline"]))
    if not panels:
        raise NothingToDraw
    columns = min(2, len(panels))
    figure, axes = _axes(math.ceil(len(panels) / columns), columns, f"Speed-up over {result['baseline']}", result)
    for axis, (title, cells) in zip(axes, panels.items(), strict=False):
        widths, batches = (sorted({key[i] for key in cells}) for i in (0, 1))
        means = {key: statistics.geometric_mean(own) for key, own in cells.items()}
        grid = [[math.log2(means[h, b]) if (h, b) in means else math.nan for h in widths] for b in batches]
        # Symmetric about 1: red is slower, blue is faster.
        axis.imshow(grid, cmap="RdBu", vmin=-3, vmax=3, origin="lower", aspect="auto")
        for (h, b), mean in means.items():
            place = (widths.index(h), batches.index(b))
            axis.text(*place, f"{mean:.1f}", ha="center", va="center", fontsize=8, color="w" if mean > 4 else "k")
        axis.set_xticks(range(len(widths)), widths)
        axis.set_yticks(range(len(batches)), batches)
        axis.set(title=title, xlabel="H", ylabel="B")
    return figure


# --- time per step -----------------------------------------------------------------------------------------------------------


def steps(result: Result) -> Any:
    """Microseconds per step against T for sequences of one, with the serial step that no size goes below."""
    panels: dict[str, dict[str, list[tuple[int, int, float]]]] = {}
    for case, row in timed(result, result["baseline"]):
        if case.variant == "dense" and case.B == 1 and case.mode in ("inference", "training"):
            lines = panels.setdefault(f"{case.cell.upper()} {case.mode}", {})
            for name, entry in row["results"].items():
                if "median_s" in entry:
                    lines.setdefault(name, []).append((case.H, case.T, 1e6 * entry["median_s"] / case.T))
    if not panels:
        raise NothingToDraw
    columns = min(2, len(panels))
    figure, axes = _axes(math.ceil(len(panels) / columns), columns, "Time per step, B = 1", result)
    colour = _colours(result)
    markers = dict(
        zip(sorted({h for lines in panels.values() for own in lines.values() for h, _, _ in own}), "os^Dv<>pP*X", strict=False)
    )
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        for name, points in lines.items():
            for width in sorted({h for h, _, _ in points}):
                own = sorted((t, us) for h, t, us in points if h == width)
                axis.plot(*zip(*own, strict=True), color=colour[name], marker=markers.get(width, "."), linewidth=1, markersize=5)
            axis.plot([], [], color=colour[name], label=name)
        for width, marker in markers.items():
            axis.plot([], [], color="0.4", marker=marker, linestyle="", label=f"H = {width}")
        serial = result["wall"].get("step_s")
        if serial:
            passes = 2 if title.endswith("training") else 1
            axis.axhline(1e6 * passes * serial[title.split()[0].lower()], color="k", linestyle=":", label="serial step")
        axis.set(title=title, xlabel="T", ylabel="µs per step", xscale="log", yscale="log")
    _legend(figure, axes)
    return figure


# --- roofline ----------------------------------------------------------------------------------------------------------------


def roofline(result: Result) -> Any:
    """GFLOP/s against the operations of one step, under the measured wall, the serial step, and for B = 1 the reading of the
    recurrent weights."""
    if not result["wall"].get("step_s"):
        raise NothingToDraw
    panels: dict[str, list[tuple[Case, Row]]] = {}
    for case, row in timed(result, OURS):
        if case.variant == "dense" and case.mode in ("inference", "training"):
            panels.setdefault(f"{case.cell.upper()} {case.mode}", []).append((case, row))
    if not panels:
        raise NothingToDraw
    threads, colour = result["settings"]["threads"], _colours(result)
    columns = min(2, len(panels))
    figure, axes = _axes(math.ceil(len(panels) / columns), columns, "Operations per second, dense float32", result)
    for axis, (title, rows) in zip(axes, panels.items(), strict=False):
        case = rows[0][0]
        for name in providers(result):
            points = [
                (row["operations"] / case.T, row["operations"] / row["results"][name]["median_s"] * 1e-9)
                for case, row in rows
                if "median_s" in row["results"].get(name, {})
            ]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour[name], marker=".", linestyle="", label=name)
        span = [f(row["operations"] / case.T for case, row in rows) for f in (min, max)]
        _limits(axis, result["wall"], threads, case, span)
        axis.set(title=title, xlabel="operations of a step", ylabel="GFLOP/s", xscale="log", yscale="log")
    _legend(figure, axes)
    return figure


def _limits(axis: Any, limits: dict[str, Any], threads: int, case: Case, span: list[float]) -> None:
    most = 1e-9 * limits["float32_flops"][str(threads)]
    axis.axhline(most, color="k", linewidth=1, label=f"wall, {most:.0f} GFLOP/s")
    passes = 2 if case.mode == "training" else 1
    serial = passes * limits["step_s"][case.cell]
    axis.plot(span, [min(most, 1e-9 * x / serial) for x in span], color="k", linestyle=":", linewidth=1, label="serial step")
    # B = 1, I = H: operations of a step and the bytes of W_hh that it reads, for every footprint that was timed.
    reading = []
    for size, rate in limits["read_bytes_per_s"][str(threads)]:
        units = math.sqrt(size / 4 / flops.GATES[case.cell])
        one = Case(case.cell, case.mode, 1, 1, round(units), round(units))
        reading.append((operations := flops.operations(one, 1), 1e-9 * operations * rate / (passes * size)))
    inside = [(x, min(y, most)) for x, y in reading if span[0] <= x <= span[1]]
    if inside:
        axis.plot(*zip(*inside, strict=True), color="0.6", linestyle="--", linewidth=1, label="reading W_hh, B = 1")


FIGURES: dict[str, Callable[[Result], Any]] = {"speedups": speedups, "steps": steps, "roofline": roofline}


def _legend(figure: Any, axes: list[Any]) -> None:
    """One for all panels, each label once."""
    pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in pairs}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)


def _colours(result: Result) -> dict[str, str]:
    return {name: f"C{i}" for i, name in enumerate(providers(result))}


def _axes(rows: int, columns: int, title: str, result: Result) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    threads = result["settings"]["threads"]
    figure.suptitle(f"{title}: {result['machine']['name']}, {threads} thread{'s' * (threads > 1)}")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
