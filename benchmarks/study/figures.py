"""The report's plots. A plot's file carries a digest of the numbers in it: a stale one is found without drawing it anew."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .ablations import VARIANTS
from .arms import GRU, LSTM, WIDE_GRU
from .claims import LAGGED, Results, errors, final_accuracies, objection, progress, seeds, units

ARMS = (LSTM, GRU, WIDE_GRU)
_COLOURS = {LSTM: "#1f4e8c", GRU: "#d9822b", WIDE_GRU: "#8c3b1f"}
_KEY = "Data"


@dataclass(frozen=True)
class Line:
    """A middle and, from the seeds or rounds, the lowest and highest around it."""

    label: str
    x: list[Any]
    y: list[float]
    low: list[float]
    high: list[float]
    colour: str | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    x: str
    y: str
    lines: list[Line] = field(default_factory=list)
    logarithmic: str = ""  # "x", "y" or "xy"
    kind: str = "lines"  # or "bars": one per x, and one line only


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    panels: list[Panel]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


def figures(results: Results) -> list[Figure]:
    """Those whose parts were measured."""
    return [Figure(name, caption, panels(results)) for name, caption, needs, panels in _PLOTS if not objection(results, *needs)]


def _line(label: str, points: Sequence[tuple[Any, Sequence[float]]], colour: str | None = None, dashed: bool = False) -> Line:
    """Of (x, samples): the mean and the range."""
    samples = [values for _, values in points]
    means = [round(statistics.fmean(values), 8) for values in samples]
    return Line(label, [x for x, _ in points], means, [*map(min, samples)], [*map(max, samples)], colour, dashed)


def _costs(results: Results) -> list[Panel]:
    time = Panel("training step", "hidden size", "ms", [], "xy")
    memory = Panel("kept for backward", "hidden size", "MB", [], "xy")
    latency = Panel("streamed step, p50 (p99: upper edge)", "hidden size", "µs", [], "xy")
    footprint = units(results, "footprint")
    for library in ("torch.nn", "rnnkernels"):
        for arm in ARMS:
            style = {"colour": _COLOURS[arm], "dashed": library == "torch.nn"}
            label = f"{arm}, {library}"
            sizes = [int(name.removeprefix("H=")) for name in footprint]
            steps = [units(results, "layer times")[f"{library} training H={size}"][arm] for size in sizes]
            time.lines.append(
                Line(label, sizes, *([1e3 * step[key] for step in steps] for key in ("median_s", "p20_s", "p80_s")), **style)
            )
            kept = [own[arm]["memory"][library]["activations"] / 1e6 for own in footprint.values()]
            memory.lines.append(Line(label, sizes, kept, kept, kept, **style))
            streamed = [
                (int(name.partition("H=")[2]), own[arm])
                for name, own in units(results, "streaming").items()
                if name.startswith(library)
            ]
            p50, p99 = ([1e6 * own[key]["median_s"] for _, own in streamed] for key in ("p50", "p99"))
            latency.lines.append(Line(label, [size for size, _ in streamed], p50, p50, p99, **style))
    return [time, memory, latency]


def _language(results: Results) -> list[Panel]:
    panels = [Panel("by steps", "step", "nats per character")]
    curves = {arm: [run["curve"] for run in seeds(results, "language", arm)] for arm in ARMS}

    def line(arm: str, scale: float) -> Line:
        points = zip(curves[arm][0]["step"], zip(*(curve["held_out"] for curve in curves[arm]), strict=True), strict=True)
        return _line(arm, [(round(step * scale, 6), losses) for step, losses in points], _COLOURS[arm])

    panels[0].lines.extend(line(arm, 1) for arm in ARMS)
    for library, times in units(results, "language step").items():
        lines = [line(arm, times[arm]["median_s"]) for arm in ARMS]
        panels.append(Panel(f"by time, {library}", "seconds", "nats per character", lines))
    return panels


def _lags(results: Results) -> list[Panel]:
    panels = []
    for task in LAGGED:
        lags = results[task]["extent"]["lags"]
        lines = [
            _line(arm, [(lag, final_accuracies(results, task, f"{arm}, lag {lag}")) for lag in lags], _COLOURS[arm])
            for arm in ARMS
        ]
        panels.append(Panel(task, "lag", "accuracy", lines, "x"))
    return panels


def _series(results: Results) -> list[Panel]:
    panels: dict[str, dict[str, list[tuple[int, list[float]]]]] = {}
    for unit, own in units(results, "series").items():
        name, points = unit.removesuffix(" points").split(", ")
        panel = panels.setdefault(name, {})
        for arm in ARMS:
            panel.setdefault(arm, []).append((int(points), errors(results, unit, arm)))
        panel.setdefault("linear autoregression", []).append((int(points), [own["autoregression"]]))
    return [
        Panel(
            name, "points to train on", "error ÷ persistence's", [_line(*line, _COLOURS.get(line[0])) for line in lines.items()]
        )
        for name, lines in panels.items()
    ]


def _gates(results: Results) -> list[Panel]:
    names = [variant.name for variant in VARIANTS]
    lags = results["ablations"]["extent"]["lags"]
    return [
        Panel(
            f"{task}, lag {lag}",
            "mean accuracy",
            "",
            [_line("", [(name, progress(results, task, name)) for name in names])],
            kind="bars",
        )
        for task, lag in lags.items()
    ]


_PLOTS: tuple[tuple[str, str, tuple[str, ...], Callable[[Results], list[Panel]]], ...] = (
    (
        "costs",
        "Time of a layer's training step, bytes kept for backward, latency of a streamed step.",
        ("footprint", "layer times", "streaming"),
        _costs,
    ),
    (
        "language",
        "Held-out loss of a character language model against steps and, steps times the seconds of a step, against time. "
        "Bands: all seeds.",
        ("language", "language step"),
        _language,
    ),
    ("lags", "Accuracy on fresh sequences after all steps, against the lag. Bands: all seeds.", LAGGED, _lags),
    ("gates", "Mean accuracy over the budget of steps with gates changed. Whiskers: all seeds.", ("ablations",), _gates),
    (
        "series",
        "Error on real series, as a share of persistence's, against points to train on. Bands: all seeds.",
        ("series",),
        _series,
    ),
)


# --- drawing -------------------------------------------------------------------------------------------------------------


def draw(figure: Figure, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawers: dict[str, Callable[[Any, Panel], None]] = {"lines": _draw_lines, "bars": _draw_bars}
    columns = len(figure.panels)
    canvas, axes = pyplot.subplots(1, columns, figsize=(4.3 * columns, 3.8), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], figure.panels, strict=True):
        drawers[panel.kind](axis, panel)
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        canvas.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=90, metadata={_KEY: figure.digest(), "Software": None})
    pyplot.close(canvas)


def drawn_digest(path: Path) -> str | None:
    """The digest of the numbers that a plot was drawn from."""
    from PIL import Image

    with Image.open(path) as image:
        return image.text.get(_KEY)


def _draw_lines(axis: Any, panel: Panel) -> None:
    for line in panel.lines:
        colour = line.colour or "0.5"
        axis.plot(line.x, line.y, "--" if line.dashed else "-", color=colour, label=line.label, marker="." * (len(line.x) < 8))
        axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if "x" in panel.logarithmic:
        axis.set_xscale("log", base=2)
        ticks = panel.lines[0].x
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
    if "y" in panel.logarithmic:
        axis.set_yscale("log")


def _draw_bars(axis: Any, panel: Panel) -> None:
    (bars,) = panel.lines
    at = range(len(bars.x))
    whiskers = [
        [y - low for y, low in zip(bars.y, bars.low, strict=True)],
        [high - y for y, high in zip(bars.y, bars.high, strict=True)],
    ]
    colours = [_COLOURS[LSTM] if name.startswith(LSTM) else _COLOURS[GRU] for name in bars.x]
    axis.barh(at, bars.y, xerr=whiskers, color=colours, alpha=0.8)
    axis.set_yticks(at, bars.x, fontsize="small")
    axis.invert_yaxis()
