"""Stage 3: every schedule, forward and backward, against the float64 oracle, with every byte nobody wrote set to NaN.

Row key: ``<case>, <precision>: <choice>``. ``share`` is the error as a share of what is allowed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

import torch

from ..cases import Case
from . import schedules
from .problems import Budget, draw, evaluate, poisoned
from .schedules import PRECISIONS, Choice, Gpu, backend_of, best_of_each, fitting, gpu, only, pretend_gpu, recorded, switched
from .stage import Row, Stage

#: T, B, I, H, and what sets the case apart. The first ones fit one program or CTA each, in half types and in float32; then those
#: that need a cluster or a grid, with hidden sizes that fill no chunk, several launches (many rows) and many programs (many
#: units), and a projection, which goes step by step.
_SHAPES = (
    ((23, 19, 31, 61), {"packed": True, "bidirectional": True}),
    ((17, 33, 40, 200), {"packed": True, "bidirectional": True}),
    ((12, 5, 24, 1000), {}),
    ((11, 7, 24, 96), {"packed": True, "bidirectional": True, "proj_size": 40}),
    ((40, 1, 64, 128), {}),
    ((9, 150, 64, 512), {"packed": True}),
    ((65, 64, 128, 256), {}),
    ((6, 70, 16, 1024), {"bidirectional": True}),
)

_PASSES = ("forward", "backward")

Pair = tuple[str, Case]  # precision and case


def fixed_cases() -> Iterator[Pair]:
    """The most telling first."""
    for shape, variant in _SHAPES:
        for precision in ("bfloat16", "tf32", "float16", "ieee"):
            yield from _both_cells(precision, shape, variant)


def random_cases(most: tuple[int, int, int, int]) -> Iterator[Pair]:
    """Sizes T, B, I, H between 1 and ``most``, without an end, the same in every run."""
    draw_shape = random.Random(0)
    while True:
        shape = tuple(draw_shape.randint(1, n) for n in most)
        variant = {"packed": draw_shape.random() < 0.5, "bidirectional": draw_shape.random() < 0.3}
        for precision in PRECISIONS:
            yield from _both_cells(precision, shape, variant)


def dry_cases() -> Iterator[Pair]:
    """What Triton's interpreter computes in seconds: 16 units are the most that its grid can have there, and enough for the CUDA
    kernels' of an LSTM."""
    yield from _both_cells("bfloat16", (2, 2, 4, 16), {"packed": True})
    yield from _both_cells("ieee", (2, 2, 3, 5), {"bidirectional": True, "proj_size": 4})


def _both_cells(precision: str, shape: tuple[int, ...], variant: dict[str, bool]) -> Iterator[Pair]:
    for cell in ("lstm",) if "proj_size" in variant else ("lstm", "gru"):
        yield precision, Case(cell, "training", *shape, dtype=PRECISIONS[precision][0], **variant)


def rows(gpu: Gpu, dry: bool) -> Iterator[tuple[str, Case, Choice]]:
    """What is checked: every schedule of each case, then every tiling."""
    pairs = list(dry_cases() if dry else fixed_cases())
    for precision, case in pairs:
        for choice in best_of_each(fitting(case, precision, gpu)).values():
            yield precision, case, choice
    for precision, case in pairs:
        choices = fitting(case, precision, gpu)
        others = [choice for choice in choices if choice not in best_of_each(choices).values()]
        yield from ((precision, case, choice) for choice in others[: 1 if dry else None])


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    device = gpu(torch.empty(1, device=stage.torch_device))
    stage.row("torch.nn in float64 on this device and on the CPU", lambda: _oracles_agree(stage.torch_device))
    budget = functools.lru_cache(maxsize=64)(functools.partial(_budget, stage.torch_device))
    for row in rows(device, stage.dry):
        _row(stage, budget, *row)
    n_random = 0
    for precision, case in random_cases((3, 2, 5, 9) if stage.dry else (40, 64, 200, 1100)):
        if stage.seconds_left <= 0 or n_random == (1 if stage.dry else 200):
            break
        for choice in best_of_each(fitting(case, precision, device)).values():
            _row(stage, budget, precision, case, choice)
        n_random += 1
    stage.fact("random_cases", n_random)


def _row(stage: Stage, budget: Callable[[Case, str], Budget], precision: str, case: Case, choice: Choice) -> None:
    check = functools.partial(_check, stage.torch_device, budget, precision, case, choice)
    stage.row(f"{case}, {precision}: {choice}", check, choice.schedule)


def _budget(device: torch.device, case: Case, precision: str) -> Budget:
    with switched(precision):
        return Budget(draw(case), device)


def _check(device: torch.device, budget: Callable[[Case, str], Budget], precision: str, case: Case, choice: Choice) -> Row:
    row: Row = {"case": case.as_dict(), "precision": precision, "choice": choice.as_dict()}
    problem, allowed = draw(case), budget(case, precision)
    with switched(precision), recorded() as launches, only(choice), poisoned(device):
        results = evaluate(problem, backend_of(choice.backend), device, case.torch_dtype)
        if choice.backend == "cuda":
            launches += [{"pass": way, **schedules.cuda_plan(case, precision, way == "backward")} for way in _PASSES]
    return {**row, **allowed.check(results), "launches": launches}


def _oracles_agree(device: torch.device) -> Row:
    """torch.nn in float64 on the GPU agrees with the one on the CPU: what is called exact is."""
    case = Case("lstm", "training", 20, 7, 30, 50, dtype="float64", packed=True)
    problem = draw(case)
    cpu = evaluate(problem, "aten", torch.device("cpu"), torch.float64)
    own = evaluate(problem, "aten", device, torch.float64)
    return {"largest_difference": max(float((own[name].cpu() - value).abs().max()) for name, value in cpu.items())}
