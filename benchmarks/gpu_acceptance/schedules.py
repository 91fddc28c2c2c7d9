"""Making layers take one schedule, finding those that fit, and seeing what was launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rnnkernels.backends.triton import sequence, tuning
from rnnkernels.backends.triton.plan import STEPWISE, Device, Tiling, Workload, candidates

from ..cases import Case

#: How products are computed: a dtype, and for float32 torch's switch for recurrent layers.
PRECISIONS = {
    "bfloat16": ("bfloat16", "tf32"),
    "float16": ("float16", "tf32"),
    "tf32": ("float32", "tf32"),
    "ieee": ("float32", "ieee"),
}


def torch_dtype(precision: str) -> torch.dtype:
    return getattr(torch, PRECISIONS[precision][0])


@contextmanager
def switched(precision: str) -> Iterator[None]:
    """Set the switch for recurrent layers, which cuDNN and our kernels follow."""
    switch = torch.backends.cudnn.rnn
    before, switch.fp32_precision = switch.fp32_precision, PRECISIONS[precision][1]
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextmanager
def only(tiling: Tiling | None) -> Iterator[None]:
    """Compute every layer inside with exactly this tiling, or (None) as planned."""
    if tiling is None:
        yield
        return
    # The wish holds for this thread; backward of CUDA tensors would run in another.
    with tuning.forced(tiling), torch.autograd.set_multithreading_enabled(False):
        yield


def gpu(tensor: Tensor) -> Device:
    return sequence.device_of(tensor)


def one_program_at_a_time() -> None:
    """Let Triton's interpreter run the grid schedule where a single program takes part in each barrier: at most 16 units."""
    sequence.INTERPRETER = sequence.INTERPRETER._replace(processors=1)


def workload(case: Case, precision: str, backward: bool) -> Workload:
    """The layer of a case with one layer, one way through time."""
    with switched(precision):
        exactness = sequence.precision(torch_dtype(precision))
    size = torch_dtype(precision).itemsize
    directions = 2 if case.bidirectional else 1
    return Workload(case.cell, backward, case.H, case.B, directions, size, exactness, case.proj_size > 0, case.T == 1)


def fitting(case: Case, precision: str, device: Device) -> list[Tiling]:
    """The tilings that can compute a case, best guess first: in training those that fit both ways through time."""
    forward = candidates(workload(case, precision, backward=False), device)
    if case.mode == "inference":
        return forward
    backward = candidates(workload(case, precision, backward=True), device)
    return [tiling for tiling in forward if tiling in backward]


def best_of_each(tilings: list[Tiling]) -> dict[str, Tiling]:
    """Schedule -> the first of its tilings."""
    found: dict[str, Tiling] = {}
    for tiling in tilings:
        found.setdefault(tiling.schedule, tiling)
    return found


def planned(case: Case, precision: str, tensor: Tensor) -> dict[str, Tiling]:
    """What the plan chooses: "forward" and, in training, "backward" -> tiling."""
    ways = {"forward": False} | ({"backward": True} if case.mode == "training" else {})
    return {way: sequence.tiling_for(workload(case, precision, back), tensor) for way, back in ways.items()}


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """The launches of sequence kernels inside, in order, each once: name, grid, compile-time numbers, registers, spills, shared
    memory."""
    launches: list[dict[str, Any]] = []
    seen = set()

    def start(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        compiled = kernel[grid](**arguments, **options)
        names = [name for name in arguments if name.isupper() and name != "H"]
        launch = {"kernel": kernel.__name__, "grid": list(grid), **{name: arguments[name] for name in names}, **options}
        metadata = getattr(compiled, "metadata", None)
        launch |= {name: getattr(compiled, name) for name in ("n_regs", "n_spills") if hasattr(compiled, name)}
        launch |= {"shared": metadata.shared} if metadata is not None else {}
        if (identity := str(launch)) not in seen:
            seen.add(identity)
            launches.append(launch)

    with started_by(start):
        yield launches


@contextmanager
def started_by(start: Callable[..., None]) -> Iterator[None]:
    """Hand the launches of sequence kernels inside to ``start`` in place of Triton."""
    original, sequence.start = sequence.start, start
    try:
        yield
    finally:
        sequence.start = original


__all__ = [
    "PRECISIONS",
    "STEPWISE",
    "best_of_each",
    "fitting",
    "gpu",
    "one_program_at_a_time",
    "only",
    "planned",
    "recorded",
    "started_by",
    "switched",
    "torch_dtype",
    "workload",
]
