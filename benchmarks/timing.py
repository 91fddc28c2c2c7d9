"""Interleaved timing: every round times each provider once, in a new random order, so that a slow moment of the machine hits
all of them and the ratios within a round hold.

The clock is torch.utils.benchmark's, which waits for a GPU, and the loop timeit's.
"""

from __future__ import annotations

import random
import statistics
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import benchmark

#: One timing lasts at least this long, so that the clock's own resolution and cost vanish.
SHORTEST_TIMING_S = 5e-3
#: Threads of one provider's pool may spin on for a while after its call; whoever is next waits for that.
PAUSE_S = 2e-3
#: More rounds than this make no median better.
MOST_ROUNDS = 40


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
    contestants: dict[str, Contestant],
    *,
    seconds: float,
    min_rounds: int,
    seed: int,
    before: Callable[[], object] | None = None,
    beside: Callable[[], object] | None = None,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time every contestant for about ``seconds`` on average, in at least ``min_rounds`` and at most MOST_ROUNDS rounds.

    Args:
        before: called ahead of every timing, to empty the caches; then a timing is a single call.
        beside: called once a round, in turn with the contestants: what the machine can do at such a moment.

    Returns:
        Each contestant's seconds per call in every round, and its calls per round.
    """
    shuffle = random.Random(seed).shuffle
    timers = {name: timeit.Timer(c.step, timer=benchmark.timer) for name, c in contestants.items()}
    calls = dict.fromkeys(timers, 1)
    for name, timer in timers.items():
        with contestants[name].scope():
            timer.timeit(1)  # the first call pays for lazy initialisation
            if before is None:
                once = timer.timeit(1)
                calls[name] = max(1, round(SHORTEST_TIMING_S / min(once, timer.timeit(3) / 3 if once < 0.1 else once)))
    samples: dict[str, list[float]] = {name: [] for name in timers}
    order: list[str | None] = [*timers, None] if beside is not None else [*timers]
    deadline = time.monotonic() + seconds * len(timers)
    done = 0
    while done < min_rounds or (time.monotonic() < deadline and done < max(min_rounds, MOST_ROUNDS)):
        shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            if name is None:
                beside()
                continue
            with contestants[name].scope():
                if before is not None:
                    before()
                elif calls[name] > 1:
                    contestants[name].step()  # its weights back into the cache
                samples[name].append(timers[name].timeit(calls[name]) / calls[name])
        done += 1
    return samples, calls


def summarize(own: list[float], baseline: list[float], calls: int = 1) -> Timing:
    """Seconds per call over rounds, and their ratios to the same rounds of the baseline."""
    times = p20_p50_p80(own)
    ratios = p20_p50_p80([b / o for b, o in zip(baseline, own, strict=True)])
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


def p20_p50_p80(values: list[float]) -> tuple[float, float, float]:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[-1]


class CacheFlush:
    """Writes and reads twice the largest cache: what comes after finds nothing of its own in it."""

    def __init__(self, device: torch.device | str) -> None:
        self.memory = torch.zeros(2 * largest_cache(device) // 4, device=device)

    def __call__(self) -> None:
        self.memory.add_(1)


def largest_cache(device: torch.device | str) -> int:
    """Bytes of the last cache before memory; where nobody says, more than most have."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=2**26)
