"""Interleaved timing: every round times each provider once, in a new random order, so that a slow moment of the machine hits
all of them and the ratios within a round hold."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch.utils.benchmark import Timer

#: One timing lasts at least this long, so that the clock's own resolution and cost vanish.
SHORTEST_TIMING_S = 5e-3


@dataclass(frozen=True)
class Contestant:
    """What is timed: ``step()`` within ``scope()``."""

    step: Callable[[], object]
    scope: Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Timing:
    """Seconds per call over all rounds, and the speed-up over the baseline: the median of the rounds' ratios."""

    median_s: float
    p20_s: float
    p80_s: float
    speedup: float
    speedup_p20: float
    speedup_p80: float
    rounds: int
    calls_per_round: int


def interleave(
    contestants: dict[str, Contestant], baseline: str, *, seconds: float, min_rounds: int, threads: int, seed: int
) -> dict[str, Timing]:
    """Time every contestant for about ``seconds`` on average, in at least ``min_rounds`` >= 2 rounds."""
    shuffle = random.Random(seed).shuffle
    timers = {
        name: Timer("step()", globals={"step": contestant.step}, num_threads=threads) for name, contestant in contestants.items()
    }
    calls = {}
    for name, timer in timers.items():
        with contestants[name].scope():
            timer.timeit(2)  # the first calls pay for lazy initialisation
            calls[name] = max(1, round(SHORTEST_TIMING_S / timer.timeit(2).median))
    samples: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    deadline = time.monotonic() + seconds * len(timers)
    while time.monotonic() < deadline or len(samples[baseline]) < min_rounds:
        shuffle(order)
        for name in order:
            with contestants[name].scope():
                samples[name].append(timers[name].timeit(calls[name]).median)
    return {name: summarize(own, samples[baseline], calls[name]) for name, own in samples.items()}


def summarize(own: list[float], baseline: list[float], calls: int = 1) -> Timing:
    """Seconds per call over rounds, and their ratios to the same rounds of the baseline."""
    times = _p20_p50_p80(own)
    ratios = _p20_p50_p80([b / o for b, o in zip(baseline, own, strict=True)])
    return Timing(
        median_s=times[1],
        p20_s=times[0],
        p80_s=times[2],
        speedup=ratios[1],
        speedup_p20=ratios[0],
        speedup_p80=ratios[2],
        rounds=len(own),
        calls_per_round=calls,
    )


def _p20_p50_p80(values: list[float]) -> tuple[float, float, float]:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[-1]
