"""Stage 2: every schedule, forward and backward, against the float64 oracle, with every byte nobody wrote set to NaN.

Row key: ``<case>, <precision>: <tiling>``. ``share`` is the error as a share of what is allowed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

import torch

from rnnkernels.backends.triton.plan import Device, Tiling

from ..cases import Case
from .problems import Budget, draw, evaluate, poisoned
from .schedules import PRECISIONS, best_of_each, fitting, gpu, one_program_at_a_time, only, recorded, switched
from .stage import Row, Stage

#: T, B, I, H, and what sets the case apart. The first ones fit one program each, in half types and in float32; then those that
#: need the grid, with hidden sizes that fill no chunk, several launches (many rows) and many programs (many units).
_SHAPES = (
    ((23, 19, 31, 61), {"packed": True, "bidirectional": True}),
    ((17, 33, 40, 200), {"packed": True, "bidirectional": True}),
    ((12, 5, 24, 1000), {}),
    ((40, 1, 64, 128), {}),
    ((9, 150, 64, 512), {"packed": True}),
    ((65, 64, 128, 256), {}),
    ((6, 70, 16, 1024), {"bidirectional": True}),
)


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
    """What Triton's interpreter computes in seconds."""
    yield from _both_cells("bfloat16", (3, 2, 4, 5), {})
    yield from _both_cells("ieee", (2, 3, 4, 5), {"packed": True, "bidirectional": True})


def _both_cells(precision: str, shape: tuple[int, ...], variant: dict[str, bool]) -> Iterator[Pair]:
    for cell in ("lstm", "gru"):
        yield precision, Case(cell, "training", *shape, dtype=PRECISIONS[precision][0], **variant)


def rows(device: Device, dry: bool) -> Iterator[tuple[str, Case, Tiling]]:
    """What is checked: one tiling per schedule of each case, then the other tilings."""
    pairs = list(dry_cases() if dry else fixed_cases())
    for precision, case in pairs:
        for tiling in best_of_each(fitting(case, precision, device)).values():
            yield precision, case, tiling
    for precision, case in pairs:
        tilings = fitting(case, precision, device)
        for tiling in tilings[: 2 if dry else None]:
            if tiling not in best_of_each(tilings).values():
                yield precision, case, tiling


def run(stage: Stage) -> None:
    if stage.dry:
        one_program_at_a_time()
    device = gpu(torch.empty(1, device=stage.torch_device))
    stage.row("torch.nn in float64 on this device and on the CPU", lambda: _oracles_agree(stage.torch_device))
    budget = functools.lru_cache(maxsize=64)(functools.partial(_budget, stage.torch_device))
    for row in rows(device, stage.dry):
        _row(stage, budget, *row)
    n_random = 0
    for precision, case in random_cases((4, 3, 5, 16) if stage.dry else (40, 64, 200, 1100)):
        if stage.seconds_left <= 0 or n_random == (1 if stage.dry else 200):
            break
        for tiling in best_of_each(fitting(case, precision, device)).values():
            _row(stage, budget, precision, case, tiling)
        n_random += 1
    stage.fact("random_cases", n_random)


def _row(stage: Stage, budget: Callable[[Case, str], Budget], precision: str, case: Case, tiling: Tiling) -> None:
    check = functools.partial(_check, stage.torch_device, budget, precision, case, tiling)
    stage.row(f"{case}, {precision}: {tiling}", check, tiling.schedule)


def _budget(device: torch.device, case: Case, precision: str) -> Budget:
    with switched(precision):
        return Budget(draw(case), device)


def _check(device: torch.device, budget: Callable[[Case, str], Budget], precision: str, case: Case, tiling: Tiling) -> Row:
    row: Row = {"case": case.as_dict(), "precision": precision, "tiling": tiling._asdict()}
    problem, allowed = draw(case), budget(case, precision)
    with switched(precision), recorded() as launches, only(tiling), poisoned(device):
        results = evaluate(problem, "triton", device, case.torch_dtype)
    return {**row, **allowed.check(results), "launches": launches}


def _oracles_agree(device: torch.device) -> Row:
    """torch.nn in float64 on the GPU agrees with the one on the CPU: what is called exact is."""
    case = Case("lstm", "training", 20, 7, 30, 50, dtype="float64", packed=True)
    problem = draw(case)
    cpu = evaluate(problem, "aten", torch.device("cpu"), torch.float64)
    own = evaluate(problem, "aten", device, torch.float64)
    return {"largest_difference": max(float((own[name].cpu() - value).abs().max()) for name, value in cpu.items())}
