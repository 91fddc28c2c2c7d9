"""Interleaved timing on a device: every round calls each contestant once, in a new random order.

=========  ==========================================================================================================
wall       the host's clock, from the call to the end of its last kernel: what eager code waits for
kernel     the device's clock around a replay of the call's CUDA graph: what its kernels take, launched without pauses
=========  ==========================================================================================================
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ..timing import summarize

Call = Callable[[], object]


def wall_times(calls: dict[str, Call], baseline: str, device: torch.device, seconds: float, min_rounds: int) -> dict[str, Any]:
    """-> name -> the fields of :class:`benchmarks.timing.Timing`. ``seconds`` is for all contestants together."""

    def clock(call: Call) -> float:
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - begin

    def round(order: list[str]) -> dict[str, float]:
        return {name: clock(calls[name]) for name in order}

    return _interleaved(list(calls), baseline, round, seconds, min_rounds)


def event_times(calls: dict[str, Call], baseline: str, seconds: float, min_rounds: int) -> dict[str, Any]:
    """The same by the device's clock: a round's calls are queued at once, so that the device does not wait for the host."""

    def round(order: list[str]) -> dict[str, float]:
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in order}
        for name in order:
            events[name][0].record()
            calls[name]()
            events[name][1].record()
        torch.cuda.synchronize()
        return {name: begin.elapsed_time(end) * 1e-3 for name, (begin, end) in events.items()}

    return _interleaved(list(calls), baseline, round, seconds, min_rounds)


def captured(call: Call) -> Call:
    """``call``, once more than recorded in a CUDA graph: calling the result replays it. What it returned stays in place."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # A Triton kernel that Python collects unloads its module, which must not happen while capturing.
    enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            result = call()
    finally:
        if enabled:
            gc.enable()

    def replay() -> object:
        graph.replay()
        return result

    return replay


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _interleaved(
    names: list[str], baseline: str, round: Callable[[list[str]], dict[str, float]], seconds: float, min_rounds: int
) -> dict[str, Any]:
    shuffle, order = random.Random(0).shuffle, list(names)
    samples: dict[str, list[float]] = {name: [] for name in names}
    round(order)  # a first one that does not count: clocks rise, caches fill
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(samples[baseline]) < min_rounds:
        shuffle(order)
        for name, value in round(order).items():
            samples[name].append(value)
    return {name: asdict(summarize(own, samples[baseline])) for name, own in samples.items()}
