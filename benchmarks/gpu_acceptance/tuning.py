"""Stage 5: every tiling that fits a layer, timed, forward and backward apart, because they are planned apart.

A row's ``key`` begins with the key under which :mod:`rnnkernels.backends.triton.tuning` looks a measurement up, and the fact
``table`` has the form of its files: key -> the fields of the fastest tiling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import triton

from rnnkernels.backends.triton import tuning
from rnnkernels.backends.triton.plan import Tiling, Workload, candidates, plan

from ..cases import Case
from . import layers, speed
from .schedules import PRECISIONS, gpu, one_program_at_a_time, only, switched, workload
from .stage import Row, Stage

#: Steps: enough that what happens once per launch does not decide.
_STEPS = 128


def workloads(dry: bool) -> Iterator[tuple[str, Case, bool]]:
    """Precision, case, and whether backward is meant; the shapes in the order of the stage speed."""
    for H, B in ((8, 2),) if dry else speed.SHAPES:
        for precision in ("bfloat16",) if dry else ("bfloat16", "float16", "tf32"):
            for cell in ("lstm", "gru"):
                for backward in (False, True):
                    yield precision, Case(cell, "training", 2 if dry else _STEPS, B, H, H, PRECISIONS[precision][0]), backward


def run(stage: Stage) -> None:
    if stage.dry:
        one_program_at_a_time()
    device = gpu(torch.empty(1, device=stage.torch_device))
    table: dict[str, dict] = {}
    for precision, case, backward in workloads(stage.dry):
        work = workload(case, precision, backward)
        tilings = [tiling for tiling in candidates(work, device) if tiling.schedule not in stage.blocked()]
        guess = plan(work, device)
        measure = functools.partial(_measure, stage, precision, case, work, tilings, guess)
        row = stage.row(f"{tuning.key(work)}, H={case.H} B={case.B}", measure)
        if row is not None and "fastest" in row:
            table[tuning.key(work)] = row["fastest"]
            stage.fact("table", table)


def _measure(stage: Stage, precision: str, case: Case, work: Workload, tilings: list[Tiling], guess: Tiling) -> Row:
    make = layers.backward_pass if work.backward else layers.forward_pass
    times: dict[Tiling, list[float]] = {}
    failures: dict[str, str] = {}
    with switched(precision):
        call = make(case, precision, stage.torch_device)
        for tiling in tilings:
            try:
                with only(tiling):
                    times[tiling] = _seconds(call, stage.dry)
            except RuntimeError as error:
                failures[str(tiling)] = str(error)[:500]
                if stage.fault() is not None:
                    return {"work": work._asdict(), "schedule": tiling.schedule, "error": str(error)[:500]}
    row: Row = {"work": work._asdict(), "plan": str(guess), "failures": failures}
    if not times:
        return {**row, "error": "no tiling ran"}
    fastest = min(times, key=lambda tiling: times[tiling][0])
    row["times"] = [
        {"tiling": str(tiling), **dict(zip(("median_s", "p20_s", "p80_s"), own, strict=True))} for tiling, own in times.items()
    ]
    gain = times[guess][0] / times[fastest][0] if guess in times else None
    return {**row, "fastest": fastest._asdict(), "gain_over_plan": gain}


def _seconds(call: Callable[[], object], dry: bool) -> list[float]:
    """Median, p20 and p80 of a call."""
    if dry:
        call()
        return [1.0, 1.0, 1.0]
    call()  # compiles
    times = triton.testing.do_bench(call, warmup=3, rep=15, quantiles=[0.5, 0.2, 0.8])
    return [milliseconds * 1e-3 for milliseconds in times]
