"""The speed this package is to reach on a CPU, and what a result file says of it: ``python -m benchmarks targets FILE``.

Every line is a ratio within one run: how many times less time ours takes than who it is held against, the geometric mean of the
cases it is about. Measure with ``python -m benchmarks run --grid targets``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from . import wall
from .cases import Case
from .memory import SMALLEST_BYTES
from .providers import BASELINE, JAX, ONNX_RUNTIME, OURS, OURS_PADDED, PADDED
from .results import Result, refused, timed, times_faster

#: A case and how far it is beyond what is asked: 1 is as fast as, or all of.
Measured = tuple[Case, float]


@dataclass(frozen=True)
class Target:
    """What is asked: the geometric mean over the cases, or of every case."""

    subject: str
    against: str
    wanted: float
    measure: Callable[[Result], Iterator[Measured]]
    each: bool = False  # every case must reach it


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured; ``mean`` is None if nothing was."""

    target: Target
    cases: int
    mean: float | None
    worst: float | None
    worst_case: Case | None

    @property
    def met(self) -> bool | None:
        reached = self.worst if self.target.each else self.mean
        return None if reached is None else reached >= self.target.wanted


def judge(result: Result) -> list[Outcome]:
    """Every target against the file."""
    outcomes = []
    for target in TARGETS:
        measured = list(target.measure(result))
        if not measured:
            outcomes.append(Outcome(target, 0, None, None, None))
            continue
        worst_case, worst = min(measured, key=lambda one: one[1])
        mean = statistics.geometric_mean([value for _, value in measured])
        outcomes.append(Outcome(target, len(measured), mean, worst, worst_case))
    return outcomes


def table(result: Result) -> str:
    """The outcomes as Markdown."""
    lines = ["| target | against | wanted | measured | cases | worst case | met |", "|---|---|--:|--:|--:|---|---|"]
    for outcome in judge(result):
        target = outcome.target
        wanted = f"≥ {target.wanted:g}" + (" in each" if target.each else "")
        cells = [target.subject, target.against, wanted]
        if outcome.mean is None or outcome.worst is None:
            cells += ["not measured", "0", "", ""]
        else:
            reached = outcome.worst if target.each else outcome.mean
            cells += [f"{reached:.2f}", str(outcome.cases), f"{outcome.worst:.2f}: {shape(outcome.worst_case)}"]
            cells.append("yes" if outcome.met else "**no**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """How many targets are met, and which cases had wrong results and no time."""
    met = [outcome.met for outcome in judge(result)]
    missing = f", {met.count(None)} not measured" if None in met else ""
    wrong = refused(result, OURS)
    gate = f" Refused by the gate and in no line above: {'; '.join(wrong)}." if wrong else ""
    return f"{met.count(True)} of {len(met)} targets met{missing}.{gate}"


def shape(case: Case | None) -> str:
    if case is None:
        return ""
    words = [f"T={case.T} B={case.B} I={case.I} H={case.H}"]
    words += [f"{case.num_layers} layers"] * (case.num_layers > 1) + ["both directions"] * case.bidirectional
    words += [f"P={case.proj_size}"] * bool(case.proj_size)
    return " ".join(words)


# --- what is measured ------------------------------------------------------------------------------------------------------


def _against(other: str, **wanted: Any) -> Callable[[Result], Iterator[Measured]]:
    """Ours against another provider, in cases with these fields; float32 unless said otherwise."""
    wanted = {"dtype": "float32", "packed": False} | wanted

    def measure(result: Result) -> Iterator[Measured]:
        for case, row in timed(result, OURS, other):
            if all(getattr(case, field) == value for field, value in wanted.items()):
                yield case, times_faster(row, OURS, other)

    return measure


def _own_seconds(result: Result) -> dict[Case, float]:
    return {case: row["results"][OURS]["median_s"] for case, row in timed(result, OURS)}


def _packed_against_dense(cell: str) -> Callable[[Result], Iterator[Measured]]:
    """The padded batch's time for an element by the ragged one's for a real element."""

    def measure(result: Result) -> Iterator[Measured]:
        for case, row in timed(result, OURS, OURS_PADDED):
            if case.packed and case.cell == cell and case.mode == "training" and case.dtype == "float32":
                yield case, times_faster(row, OURS, OURS_PADDED) * row["rows"] / (case.T * case.B)

    return measure


def _bfloat16_against_float32(mode: str) -> Callable[[Result], Iterator[Measured]]:
    def measure(result: Result) -> Iterator[Measured]:
        own = _own_seconds(result)
        for case, seconds in own.items():
            full = own.get(replace(case, dtype="float32"))
            if case.dtype == "bfloat16" and case.mode == mode and case.H >= 256 and full is not None:
                yield case, full / seconds

    return measure


def _wall_share(mode: str) -> Callable[[Result], Iterator[Measured]]:
    def measure(result: Result) -> Iterator[Measured]:
        for case, row in timed(result, OURS):
            reached = wall.share(row, OURS)
            large = case.H >= 512 and case.B >= 32 and not case.packed and case.T > 1
            if large and case.mode == mode and case.dtype == "float32" and reached is not None:
                yield case, reached

    return measure


def _memory(result: Result) -> Iterator[Measured]:
    """torch.nn's peak by ours, where both are large enough to be told apart."""
    for case, row in timed(result, OURS, BASELINE):
        ours, theirs = (row["results"][name].get("peak_bytes") for name in (OURS, BASELINE))
        if case.mode == "training" and ours and theirs and theirs >= SMALLEST_BYTES:
            yield case, theirs / ours


def _speed(cell: str, mode: str, against: str, wanted: float | None, **fields: Any) -> list[Target]:
    words = " ".join([cell.upper(), *["packed"] * bool(fields.get("packed")), mode])
    measure = _against(against, cell=cell, mode=mode, **fields)
    mean = [] if wanted is None else [Target(words, against, wanted, measure)]
    return [*mean, Target(words, against, 1.0, measure, each=True)]


TARGETS: tuple[Target, ...] = (
    *_speed("lstm", "inference", BASELINE, 2.0),
    *_speed("lstm", "inference", ONNX_RUNTIME, 1.3),
    *_speed("gru", "inference", BASELINE, 4.0),
    *_speed("gru", "inference", ONNX_RUNTIME, 1.3),
    *_speed("lstm", "training", BASELINE, 1.7),
    *_speed("lstm", "training", JAX, None),
    *_speed("gru", "training", BASELINE, 4.0),
    *_speed("gru", "training", JAX, 1.5),
    *_speed("lstm", "inference", BASELINE, 3.0, packed=True),
    *_speed("lstm", "inference", PADDED, 1.3, packed=True),
    *_speed("lstm", "inference", ONNX_RUNTIME, 1.3, packed=True),
    *_speed("gru", "inference", BASELINE, 2.0, packed=True),
    *_speed("gru", "inference", PADDED, 1.3, packed=True),
    *_speed("gru", "inference", ONNX_RUNTIME, 1.3, packed=True),
    *_speed("lstm", "training", BASELINE, 5.0, packed=True),
    *_speed("lstm", "training", PADDED, 1.5, packed=True),
    Target("LSTM packed training", "own dense, per real element", 0.9, _packed_against_dense("lstm")),
    *_speed("gru", "training", BASELINE, 3.0, packed=True),
    *_speed("gru", "training", PADDED, 1.5, packed=True),
    Target("GRU packed training", "own dense, per real element", 0.9, _packed_against_dense("gru")),
    *_speed("lstm", "streaming", BASELINE, 8.0),
    *_speed("lstm", "streaming", ONNX_RUNTIME, 1.5),
    *_speed("gru", "streaming", BASELINE, 4.0),
    *_speed("gru", "streaming", ONNX_RUNTIME, 1.5),
    Target("bfloat16 inference, H ≥ 256", "own float32", 1.6, _bfloat16_against_float32("inference")),
    Target("bfloat16 training, H ≥ 256", "own float32", 1.6, _bfloat16_against_float32("training")),
    Target("inference, H ≥ 512, B ≥ 32", "the wall", 0.85, _wall_share("inference")),
    Target("training, H ≥ 512, B ≥ 32", "the wall", 0.75, _wall_share("training")),
    Target("memory of a training step", BASELINE, 1.0, _memory, each=True),
)
