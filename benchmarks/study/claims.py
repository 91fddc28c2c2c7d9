"""The textbooks' claims, and which measurements are evidence for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .ablations import VARIANTS
from .arms import EQUAL_HIDDEN, EQUAL_PARAMETERS, GRU, LSTM, OPPONENTS
from .verdicts import Comparison, of_counts, of_samples, of_times

#: Part -> its result file's content.
Results = dict[str, dict[str, Any]]
LAGGED = ("adding", "copy memory", "delayed parity")


@dataclass(frozen=True)
class Claim:
    """``effect`` says what the comparisons' effects are, in words that a range of numbers follows."""

    words: str
    needs: tuple[str, ...]  # parts
    evidence: Callable[[Results], list[Comparison]]
    effect: str
    percent: bool = False  # the effects are shares of 1, to be shown in percentage points


def objection(results: Results, *parts: str) -> str | None:
    """Why a part was not measured, or None if all were."""
    reasons = [f"{part}: {reason}" for part in parts if (reason := results[part].get("objection"))]
    return "; ".join(reasons) or None


def units(results: Results, part: str) -> dict[str, Any]:
    return results[part]["units"]


# --- costs ---------------------------------------------------------------------------------------------------------------


def _counted(value: Callable[[dict[str, Any]], float], compared_at: Sequence[str]) -> Callable[[Results], list[Comparison]]:
    def evidence(results: Results) -> list[Comparison]:
        return [
            of_counts(
                {"kind of comparison": at, "hidden size": size.removeprefix("H=")}, value(own[OPPONENTS[at]]), value(own[LSTM])
            )
            for size, own in units(results, "footprint").items()
            for at in compared_at
        ]

    return evidence


def _memory(results: Results) -> list[Comparison]:
    comparisons = []
    for size, own in units(results, "footprint").items():
        for at, opponent in OPPONENTS.items():
            for library, theirs in own[opponent]["memory"].items():
                for what, figure in theirs.items():
                    setting = {"library": library, "kind of comparison": at, "hidden size": size.removeprefix("H="), "kind": what}
                    comparisons.append(of_counts(setting, figure, own[LSTM]["memory"][library][what]))
    return comparisons


def _layer_times(mode: str) -> Callable[[Results], list[Comparison]]:
    def evidence(results: Results) -> list[Comparison]:
        comparisons = []
        for name, own in units(results, "layer times").items():
            library, timed_mode, size = name.split(" ")
            for at, opponent in OPPONENTS.items():
                if timed_mode == mode:
                    setting = {"library": library, "kind of comparison": at, "hidden size": size.removeprefix("H=")}
                    comparisons.append(of_times(setting, own[opponent]))
        return comparisons

    return evidence


def _latency(results: Results) -> list[Comparison]:
    comparisons = []
    for name, own in units(results, "streaming").items():
        library, size = name.split(" ")
        for at, opponent in OPPONENTS.items():
            for percentile, timing in own[opponent].items():
                setting = {"library": library, "kind of comparison": at, "hidden size": size.removeprefix("H=")}
                comparisons.append(of_times(setting | {"percentile": percentile}, timing))
    return comparisons


# --- learning ------------------------------------------------------------------------------------------------------------


def seeds(results: Results, part: str, prefix: str) -> list[dict[str, Any]]:
    """The runs of one arm (and lag), in the order of their seeds."""
    found = [run for name, run in units(results, part).items() if name.rpartition(", seed ")[0] == prefix]
    if not found:
        raise KeyError(f"{part} has no runs of {prefix!r}")
    return found


def final_losses(results: Results, arm: str) -> list[float]:
    return [run["curve"]["held_out"][-1] for run in seeds(results, "language", arm)]


def loss_target(results: Results) -> float:
    """The loss that every run of the language model reaches: the largest of their final ones."""
    return max(loss for arm in (LSTM, *OPPONENTS.values()) for loss in final_losses(results, arm))


def steps_to(target: float, curve: dict[str, list[float]]) -> int:
    return next(step for step, loss in zip(curve["step"], curve["held_out"], strict=True) if loss <= target)


def _convergence(results: Results) -> list[Comparison]:
    """Steps to a loss that all reach, and steps to solve a lagged task where all do; the effect is a share of the LSTM's."""
    target = loss_target(results)

    def language(arm: str) -> list[float]:
        return [float(steps_to(target, run["curve"])) for run in seeds(results, "language", arm)]

    comparisons = [
        _relative({"task": "language", "kind of comparison": at}, language(opponent), language(LSTM))
        for at, opponent in OPPONENTS.items()
    ]
    for task in LAGGED:
        for lag in results[task]["extent"]["lags"]:
            solved = {
                arm: [run["solved_at"] for run in seeds(results, task, f"{arm}, lag {lag}")]
                for arm in (LSTM, *OPPONENTS.values())
            }
            for at, opponent in OPPONENTS.items():
                if None not in solved[opponent] + solved[LSTM]:
                    setting = {"task": task, "kind of comparison": at}
                    comparisons.append(_relative(setting, solved[opponent], solved[LSTM]))
    return comparisons


def _convergence_in_time(results: Results) -> list[Comparison]:
    target = loss_target(results)
    comparisons = []
    for library, times in units(results, "language step").items():

        def seconds(arm: str, times: dict[str, Any] = times) -> list[float]:
            return [times[arm]["median_s"] * steps_to(target, run["curve"]) for run in seeds(results, "language", arm)]

        for at, opponent in OPPONENTS.items():
            comparisons.append(_relative({"library": library, "kind of comparison": at}, seconds(opponent), seconds(LSTM)))
    return comparisons


def _relative(setting: dict[str, str], claimed_less: Sequence[float], claimed_more: Sequence[float]) -> Comparison:
    outcome = of_samples(setting, claimed_less, claimed_more).outcome
    return Comparison(setting, outcome, statistics.fmean(claimed_less) / statistics.fmean(claimed_more))


def _language(results: Results) -> list[Comparison]:
    return [
        of_samples({"kind of comparison": at}, final_losses(results, LSTM), final_losses(results, opponent))
        for at, opponent in OPPONENTS.items()
    ]


def _speech(results: Results) -> list[Comparison]:
    def accuracies(arm: str) -> list[float]:
        return [run["accuracy"] for run in seeds(results, "speech", arm)]

    return [of_samples({"kind of comparison": at}, accuracies(opponent), accuracies(LSTM)) for at, opponent in OPPONENTS.items()]


def final_accuracies(results: Results, part: str, prefix: str) -> list[float]:
    return [run["curve"]["accuracy"][-1] for run in seeds(results, part, prefix)]


def _long_range(results: Results) -> list[Comparison]:
    return [
        of_samples(
            {"task": task, "kind of comparison": at, "lag": str(lag)},
            final_accuracies(results, task, f"{opponent}, lag {lag}"),
            final_accuracies(results, task, f"{LSTM}, lag {lag}"),
        )
        for task in LAGGED
        for lag in results[task]["extent"]["lags"]
        for at, opponent in OPPONENTS.items()
    ]


def errors(results: Results, unit: str, arm: str) -> list[float]:
    return [run["error"] for run in units(results, "series")[unit]["arms"][arm]]


def _little_data(results: Results) -> list[Comparison]:
    comparisons = []
    for unit in units(results, "series"):
        name, points = unit.removesuffix(" points").split(", ")
        for at, opponent in OPPONENTS.items():
            setting = {"series": name, "points": points, "kind of comparison": at}
            comparisons.append(of_samples(setting, errors(results, unit, opponent), errors(results, unit, LSTM)))
    return comparisons


# --- gates ---------------------------------------------------------------------------------------------------------------


def progress(results: Results, task: str, variant: str) -> list[float]:
    """The mean accuracy over the budget of steps, which counts how soon as well as how well; a solved task stays solved."""
    whole = results["ablations"]["settings"]
    points = whole["steps"] // whole["every"]
    runs = [run["curve"]["accuracy"] for run in seeds(results, "ablations", f"{task}, {variant}")]
    return [(sum(curve) + curve[-1] * (points - len(curve))) / points for curve in runs]


def _gate(pairs: Sequence[tuple[str, str]]) -> Callable[[Results], list[Comparison]]:
    """The claim is that the second variant of each pair makes more progress than the first."""

    def evidence(results: Results) -> list[Comparison]:
        return [
            of_samples(
                {"change": _change(worse, better), "task": task}, progress(results, task, worse), progress(results, task, better)
            )
            for worse, better in pairs
            for task in results["ablations"]["extent"]["lags"]
        ]

    return evidence


def _change(*variants: str) -> str:
    return max(variants, key=len)


def _without() -> Iterator[tuple[str, str]]:
    for variant in VARIANTS:
        cell, _, change = variant.name.partition(", ")
        if change.endswith((" = 1", " = 0")):
            yield variant.name, cell


_TIME = "GRU's time ÷ LSTM's"
CLAIMS = (
    Claim(
        "A GRU has fewer parameters than an LSTM of the same hidden size.",
        ("footprint",),
        _counted(lambda arm: arm["parameters"], [EQUAL_HIDDEN]),
        "GRU's ÷ LSTM's",
    ),
    Claim(
        "A GRU takes fewer operations per training step.",
        ("footprint",),
        _counted(lambda arm: sum(arm["forward_flops"]["torch.nn"]), [EQUAL_HIDDEN, EQUAL_PARAMETERS]),
        "GRU's ÷ LSTM's",
    ),
    Claim("A GRU takes less memory to train.", ("footprint",), _memory, "GRU's ÷ LSTM's"),
    Claim("A GRU trains faster, per step.", ("layer times",), _layer_times("training"), _TIME),
    Claim("A GRU is faster at inference.", ("layer times",), _layer_times("inference"), _TIME),
    Claim("A GRU answers sooner in real time, one step at a time.", ("streaming",), _latency, _TIME),
    Claim("A GRU converges in fewer steps.", ("language", *LAGGED), _convergence, "GRU's steps ÷ LSTM's"),
    Claim("A GRU converges in less time.", ("language", "language step"), _convergence_in_time, "GRU's seconds ÷ LSTM's"),
    Claim(
        "An LSTM models language better after the same number of steps.",
        ("language",),
        _language,
        "GRU's loss less LSTM's, nats per character",
    ),
    Claim("An LSTM recognises speech better.", ("speech",), _speech, "LSTM's accuracy less GRU's", percent=True),
    Claim("An LSTM bridges longer lags.", LAGGED, _long_range, "LSTM's accuracy less GRU's", percent=True),
    Claim("A GRU forecasts better from little data.", ("series",), _little_data, "LSTM's error less GRU's, of persistence's"),
    Claim("Every gate is needed.", ("ablations",), _gate(list(_without())), "accuracy gained by the gate", percent=True),
    Claim(
        "A forget bias of 1 helps an LSTM.",
        ("ablations",),
        _gate([(LSTM, f"{LSTM}, forget bias + 1")]),
        "accuracy gained",
        percent=True,
    ),
    Claim(
        "An LSTM learns better with its input gate tied to the forget gate (i = 1 - f), as a GRU's are.",
        ("ablations",),
        _gate([(LSTM, f"{LSTM}, input gate = 1 - forget gate")]),
        "accuracy gained",
        percent=True,
    ),
    Claim(
        "A GRU learns better than an LSTM even if the LSTM's forget bias is 1.",
        ("ablations",),
        _gate([(f"{LSTM}, forget bias + 1", GRU)]),
        "accuracy gained",
        percent=True,
    ),
)
