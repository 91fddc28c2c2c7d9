"""Stage 6: every tiling that fits a layer, timed, forward and backward apart, because they are planned apart.

A row's ``fastest`` is what ``tables.py`` turns into the tables that plans read. Tilings that the CUDA kernels' plan estimates to
take :data:`FAR` times as long as its best are left out by name, without being timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import triton

from rnnkernels.backends.triton import tuning as triton_tuning

from ..cases import Case
from . import layers, speed, timing
from .schedules import (
    BACKENDS,
    PRECISIONS,
    Choice,
    Gpu,
    candidates,
    cuda_plan,
    gpu,
    only,
    planned,
    pretend_gpu,
    switched,
    workload,
)
from .stage import Row, Stage

#: Steps: enough that what happens once per launch does not decide.
_STEPS = 128

FAR = 2.0


def workloads(dry: bool) -> Iterator[tuple[str, Case, bool]]:
    """Precision, case, and whether backward is meant; the shapes in the order of the stage speed."""
    for H, B in ((16, 2),) if dry else speed.SHAPES:
        for precision in ("bfloat16",) if dry else ("bfloat16", "float16", "tf32", "ieee"):
            for cell in ("gru",) if dry else ("lstm", "gru"):
                for backward in (False, True):
                    yield precision, Case(cell, "training", 2 if dry else _STEPS, B, H, H, PRECISIONS[precision][0]), backward


def key(case: Case, precision: str, backward: bool, backend: str) -> str:
    """A row's key. Triton's begins with the key under which :mod:`rnnkernels.backends.triton.tuning` looks measurements up."""
    if backend == "triton":
        return f"triton {triton_tuning.key(workload(case, precision, backward))}, H={case.H} B={case.B}"
    return f"cuda {case.cell} {'backward' if backward else 'forward'} {precision} H={case.H} B={case.B}"


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    device = gpu(torch.empty(1, device=stage.torch_device))
    for precision, case, backward in workloads(stage.dry):
        for backend in BACKENDS:
            # Triton's tilings of exact products are few and alike.
            if (backend == "triton" and precision == "ieee") or (backend == "cuda" and device.cuda is None):
                continue
            measure = functools.partial(_measure, stage, precision, case, backward, backend, device)
            stage.row(key(case, precision, backward, backend), measure)


def _measure(stage: Stage, precision: str, case: Case, backward: bool, backend: str, device: Gpu) -> Row:
    row: Row = {"backend": backend, "precision": precision, "case": case.as_dict(), "backward": backward}
    make = layers.backward_pass if backward else layers.forward_pass
    todo = [c for c in candidates(case, precision, device, backward, backend) if c.schedule not in stage.blocked()]
    guess = planned(case, precision, torch.empty(1, device=stage.torch_device), backend)["backward" if backward else "forward"]
    estimates: dict[Choice, float] = {}
    if backend == "cuda":
        for choice in todo:
            with only(choice):
                estimates[choice] = cuda_plan(case, precision, backward)["microseconds"]
        far = [c for c in todo if estimates[c] > FAR * min(estimates.values()) and c != guess]
        row["left_out"] = [str(choice) for choice in far]
        todo = [choice for choice in todo if choice not in far]
    times: dict[Choice, list[float]] = {}
    failures: dict[str, str] = {}
    with switched(precision):
        call = make(case, precision, stage.torch_device, backend)
        for choice in todo:
            try:
                with only(choice):
                    times[choice] = _seconds(call, stage.dry)
            except RuntimeError as error:
                failures[str(choice)] = str(error)[:500]
                if stage.fault() is not None:
                    return {**row, "schedule": choice.schedule, "error": str(error)[:500]}
    row |= {"plan": str(guess), "failures": failures}
    if not times:
        return {**row, "error": "no tiling ran"}
    fastest = min(times, key=lambda choice: times[choice][0])
    row["times"] = [
        {"choice": choice.as_dict(), "name": str(choice), **dict(zip(("median_s", "p20_s", "p80_s"), own, strict=True))}
        | ({"estimated_us_per_step": estimates[choice]} if choice in estimates else {})
        for choice, own in times.items()
    ]
    gain = times[guess][0] / times[fastest][0] if guess in times else None
    return {**row, "fastest": fastest.as_dict(), "gain_over_plan": gain}


def _seconds(call: Callable[[], object], dry: bool) -> list[float]:
    """Median, p20 and p80 of a call's kernels, from a graph: called eagerly, most layers take the host longer than the device."""
    if dry:
        call()
        return [1.0, 1.0, 1.0]
    times = triton.testing.do_bench(timing.captured(call), warmup=3, rep=8, quantiles=[0.5, 0.2, 0.8])
    return [milliseconds * 1e-3 for milliseconds in times]
