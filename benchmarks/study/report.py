"""Result files -> one Markdown document and its plots. Every number and every verdict in it is computed here from the files."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..report import ROOT
from . import figures, verdicts
from .ablations import VARIANTS
from .arms import GRU, LSTM, WIDE_GRU
from .claims import (
    CLAIMS,
    LAGGED,
    Claim,
    Results,
    errors,
    final_accuracies,
    final_losses,
    loss_target,
    objection,
    progress,
    seeds,
    steps_to,
    units,
)

ARMS = figures.ARMS
_GENERATED = "<!-- rendered by python -m benchmarks study: edit benchmarks/study, not this -->"


def write(results: Results, file: Path, data: Path) -> None:
    """The document and, in a folder of its name beside it, the plots."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(results, file, data), encoding="utf-8")
    for figure in figures.figures(results):
        figures.draw(figure, plot_path(file, figure))


def plot_path(file: Path, figure: figures.Figure) -> Path:
    return file.parent / file.stem / f"{figure.name}.png"


def render(results: Results, file: Path, data: Path) -> str:
    plots = {
        figure.name: f"![{figure.caption}]({plot_path(file, figure).relative_to(file.parent).as_posix()})\n\n{figure.caption}"
        for figure in figures.figures(results)
    }
    parts = ["# LSTM or GRU?", _GENERATED, _introduction(results, data), "## The claims", claims_table(results), _rules(results)]
    for title, needs, plot, tables in _SECTIONS:
        parts += [f"## {title}", "\n".join(f"- {_condition(part, results[part])}" for part in needs)]
        if not objection(results, *needs):
            parts += [plots[plot]] if plot else []
            parts += [table(results) for table in tables]
    return "\n\n".join(parts) + "\n"


# --- head ----------------------------------------------------------------------------------------------------------------


def _introduction(results: Results, data: Path) -> str:
    machine = results["layer times"]["machine"]
    where = data.resolve()
    where = where.relative_to(ROOT) if where.is_relative_to(ROOT) else Path(where.name)
    return (
        "What textbooks say of the two cells, measured: with torch.nn and with rnnkernels, an LSTM against a GRU of the same "
        "hidden size and against a wider GRU with as many parameters. All train alike: same batches, Adam, one learning rate per "
        "task that was tuned for neither, gradients clipped at norm 1, torch.nn's initial weights.\n\n"
        f"Measured on {machine['name']} ({machine['torch_isa']}), torch {results['layer times']['versions']['torch']}. "
        f"Data: `{where.as_posix()}`. Again, on your machine: `python -m benchmarks study` (`--quick`: in a few minutes)."
    )


def claims_table(results: Results) -> str:
    rows = []
    for claim in CLAIMS:
        if (reason := objection(results, *claim.needs)) is not None:
            rows.append((claim.words, "", f"**not measured**: {reason}"))
            continue
        comparisons = claim.evidence(results)
        verdict = verdicts.judge(comparisons)
        rows.append(
            (claim.words, measured(claim, comparisons), f"**{verdict.kind}**" + f": {verdict.words}" * bool(verdict.words))
        )
    return _table(("claim", "measured", "verdict"), rows, right=0)


def measured(claim: Claim, comparisons: Sequence[verdicts.Comparison]) -> str:
    effects = [comparison.effect for comparison in comparisons]
    middle, low, high = (_effect(claim, value) for value in (statistics.median(effects), min(effects), max(effects)))
    spread = f" ({low} to {high})" * (low != high) + " points" * claim.percent
    return f"{claim.effect}: {middle}{spread}, {len(effects)} comparison{'s' * (len(effects) > 1)}"


def _effect(claim: Claim, value: float) -> str:
    return f"{100 * value:+.1f}" if claim.percent else f"{value:.3g}"


def _rules(results: Results) -> str:
    n = results["adding"]["extent"]["seeds"]
    return (
        "**How a verdict is made.** Each claim has comparisons, one per setting (library, size, lag, …; both kinds of equality). "
        f"A comparison shows what is claimed, its opposite, or no difference. Counts and times differ from {verdicts.LEAST:.0%} "
        "on, times only if the 20th to 80th percentiles of the ratios within interleaved rounds lie on one side of 1; "
        f"learned things only if the seeds' means differ with p < {verdicts.SIGNIFICANCE:.0%} in an exact permutation test (with "
        f"{n} seeds each, that takes almost complete separation). All comparisons as claimed: *holds*. None: *does not hold*. "
        "Otherwise it *depends*, on the setting that tells the outcomes apart best. In the middle column: median, and lowest to "
        "highest."
    )


def _condition(part: str, result: dict[str, Any]) -> str:
    if "objection" in result:
        return f"{part}: not measured: {result['objection']}"
    settings = ", ".join(
        f"{key.replace('_', ' ')} {_plain(value)}" for key, value in (result["settings"] | result["extent"]).items()
    )
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    commits = ", ".join(_short(commit) for commit in result["commits"])
    load = f"load average up to {result['highest_load_average']:.1f}"
    return f"{part}: {settings}; {threads}, {load}, commit {commits}, {result['date']}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {own}" for key, own in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- sections ------------------------------------------------------------------------------------------------------------


def _footprint_table(results: Results) -> str:
    rows = []
    for name, own in units(results, "footprint").items():
        for arm in ARMS:
            entry = own[arm]
            forward, backward = entry["forward_flops"]["torch.nn"]
            agree = (
                entry["parameters"] == entry["parameters_formula"]
                and forward == entry["forward_flops_formula"]
                and backward == entry["backward_flops_formula"]
            )
            memory = [
                f"{entry['memory'][lib][kind] / 1e6:.1f}"
                for kind in ("activations", "peak")
                for lib in ("torch.nn", "rnnkernels")
            ]
            rows.append(
                (
                    f"{name.removeprefix('H=')}, {arm}",
                    entry["hidden_size"],
                    f"{entry['parameters']:,}",
                    f"{(forward + backward) / 1e9:.3f}",
                    "yes" if agree else "**no**",
                    *memory,
                )
            )
    header = ("I = LSTM's H", "H", "parameters", "GFLOP per step", "as the formulas say", "kept, MB: torch.nn", "rnnkernels")
    note = _prose(
        """Formulas: G H (I + H + 2) parameters, 2 G H (I + H) T N operations forward, twice that less 2 G H² N backward, G = 4
        for LSTM and 3 for GRU. Operations are torch's own count of its products; "kept" is what torch allocates from forward
        to backward, "peak" the most at once in a training step."""
    )
    return _table((*header, "peak, MB: torch.nn", "rnnkernels"), rows) + "\n\n" + note


def _times_table(results: Results) -> str:
    rows = []
    for name, own in units(results, "layer times").items():
        library, mode, size = name.split(" ")
        lstm = own[LSTM]
        cells = [_ms(lstm)] + [f"{_ms(own[arm])} ({_share(own[arm])})" for arm in (GRU, WIDE_GRU)]
        rows.append((f"{mode}, {size}, {library}", *cells))
    return _table(("ms per call (as a share of the LSTM's, p20 to p80)", *ARMS), rows)


def _streaming_table(results: Results) -> str:
    rows = []
    for name, own in units(results, "streaming").items():
        library, size = name.split(" ")
        how = "module called with one step" if library == "torch.nn" else "`stream()`"
        cells = [f"{1e6 * own[arm]['p50']['median_s']:.2f} / {1e6 * own[arm]['p99']['median_s']:.2f}" for arm in ARMS]
        rows.append((f"{size}, {library}, {how}", *cells))
    return _table(("µs per streamed step, p50 / p99", *ARMS), rows)


def _language_table(results: Results) -> str:
    target = loss_target(results)
    times = units(results, "language step")
    rows = []
    for arm in ARMS:
        steps = [steps_to(target, run["curve"]) for run in seeds(results, "language", arm)]
        seconds = [f"{times[library][arm]['median_s'] * statistics.fmean(steps):.1f}" for library in times]
        per_step = [f"{1e3 * times[library][arm]['median_s']:.1f}" for library in times]
        rows.append((arm, _spread(final_losses(results, arm), 3), _spread(steps, 0), *per_step, *seconds))
    header = ("", "final loss, nats per character", f"steps to {target:.3f}", *(f"ms per step, {library}" for library in times))
    note = _prose(
        """Loss on the last tenth of the text, which is never trained on. Steps were learned with rnnkernels, the time of a step
        was measured apart, on an idle machine; seconds are their product. The target is the largest final loss of all runs."""
    )
    return _table((*header, *(f"seconds to it, {library}" for library in times)), rows) + "\n\n" + note


def _lags_table(results: Results) -> str:
    rows = []
    for task in LAGGED:
        for lag in results[task]["extent"]["lags"]:
            cells = []
            for arm in ARMS:
                runs = seeds(results, task, f"{arm}, lag {lag}")
                solved = [run["solved_at"] for run in runs if run["solved_at"] is not None]
                when = f"; {len(solved)} solved after {_spread(solved, 0)}" if solved else ""
                cells.append(f"{_spread(final_accuracies(results, task, f'{arm}, lag {lag}'), 1, 100)}{when}")
            rows.append((f"{task}, {lag}", *cells))
    note = _prose(
        """Share of 512 fresh sequences (copy memory: of symbols) that are right, in percent, mean and lowest to highest of the
        seeds, and how many seeds reached 99 % after how many steps. By chance: adding 8, copy memory 12.5, delayed parity 50."""
    )
    return _table(("task, lag", *ARMS), rows) + "\n\n" + note


def _gates_table(results: Results) -> str:
    tasks = results["ablations"]["extent"]["lags"]
    rows = [(variant.name, *(_spread(progress(results, task, variant.name), 1, 100) for task in tasks)) for variant in VARIANTS]
    note = _prose(
        """Mean accuracy over the budget of steps, in percent, mean and lowest to highest of the seeds. A gate is taken away by
        zero weights and a bias at which it is exactly 1 or 0, with a derivative of exactly zero; the kernels are the same."""
    )
    return _table(("", *(f"{task}, lag {lag}" for task, lag in tasks.items())), rows) + "\n\n" + note


def _series_table(results: Results) -> str:
    rows = [
        (unit, *(_spread(errors(results, unit, arm), 3) for arm in ARMS), f"{own['autoregression']:.3f}")
        for unit, own in units(results, "series").items()
    ]
    note = _prose(
        """Root mean square error of the next point over the last 100, as a share of persistence's (1: no better than "as it was
        last time"). Beside the networks: least squares on the last twelve points."""
    )
    return _table(("", *ARMS, "linear autoregression"), rows) + "\n\n" + note


def _speech_table(results: Results) -> str:
    rows = [(arm, _spread([run["accuracy"] for run in seeds(results, "speech", arm)], 1, 100)) for arm in ARMS]
    note = _prose(
        """Ten words by voices that were never heard, in percent: `examples/speech_commands.py` with fewer utterances and more
        noise."""
    )
    return _table(("", "recognised"), rows) + "\n\n" + note


def _agreement(results: Results) -> str:
    rows, agree = [], True
    for cell, losses in units(results, "agreement").items():
        theirs = [own for name, own in losses.items() if name != "rnnkernels"]
        apart = _largest_difference(losses["rnnkernels"], losses["torch.nn"])
        rounding = max(_largest_difference(*pair) for pair in itertools.combinations(theirs, 2))
        agree &= apart <= 2 * rounding
        rows.append((cell.upper(), f"{apart:.1e}", f"{rounding:.1e}", "yes" if apart <= 2 * rounding else "**no**"))
    answer = "No, beyond rounding, and so" if agree else "**More than rounding explains**, although"
    note = _prose(
        f"""{answer} everything above that is learned was learned with rnnkernels only. The first
        {results["agreement"]["settings"]["steps"]} steps of the language model, against torch.nn, and torch.nn against itself
        with weights moved by a unit in the last place before each step, which is what rounding alone does:"""
    )
    return note + "\n\n" + _table(("", "largest difference in loss", "by rounding alone", "within twice that"), rows)


def _largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


#: Title, the parts it needs, its plot, its tables.
_SECTIONS: tuple[tuple[str, tuple[str, ...], str | None, tuple[Callable[[Results], str], ...]], ...] = (
    (
        "What a layer costs",
        ("footprint", "layer times", "streaming"),
        "costs",
        (_footprint_table, _times_table, _streaming_table),
    ),
    ("Language", ("language", "language step"), "language", (_language_table,)),
    ("Long lags", LAGGED, "lags", (_lags_table,)),
    ("Gates taken away", ("ablations",), "gates", (_gates_table,)),
    ("Little data", ("series",), "series", (_series_table,)),
    ("Spoken words", ("speech",), None, (_speech_table,)),
    ("Does the library matter to what is learned?", ("agreement",), None, (_agreement,)),
)


# --- words ---------------------------------------------------------------------------------------------------------------


def _prose(text: str) -> str:
    return " ".join(text.split())


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else commit[:9] + " with changes" * commit.endswith("+")


def _table(header: Sequence[Any], rows: Iterable[Sequence[Any]], right: int = 1) -> str:
    """``right``: 1 if all columns but the first are numbers."""
    lines = [f"| {' | '.join(map(str, header))} |", "|---|" + ("--:|" if right else "---|") * (len(header) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _spread(values: Sequence[float], digits: int, scale: float = 1) -> str:
    mean, low, high = (f"{scale * value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def _ms(timing: dict[str, Any]) -> str:
    return f"{1e3 * timing['median_s']:.3g}"


def _share(timing: dict[str, Any]) -> str:
    return " to ".join(f"{1 / timing[key]:.2f}" for key in ("speedup_p80", "speedup_p20"))
