"""Stage 3: the same inputs give the same bits, again and again, eagerly and from a replayed CUDA graph.

Many steps and many programs: a missing barrier shows as bits that differ from run to run long before it shows as an error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

import rnnkernels
from rnnkernels.backends.triton.plan import Device, Tiling

from ..cases import Case
from . import timing
from .problems import Problem, Results, draw, evaluate, poisoned
from .schedules import PRECISIONS, best_of_each, fitting, gpu, one_program_at_a_time, only, switched
from .stage import Row, Stage

_REPEATS = 6

#: T, B, H: one program's size, the grid's, and the grid's with several launches and all processors busy.
_SHAPES = ((512, 48, 64), (512, 64, 512), (300, 150, 1024))


def rows(device: Device, dry: bool) -> Iterator[tuple[str, Case, Tiling]]:
    for T, B, H in ((2, 2, 8),) if dry else _SHAPES:
        for precision in ("bfloat16",) if dry else ("bfloat16", "tf32"):
            for cell in ("lstm", "gru"):
                case = Case(cell, "training", T, B, H, H, dtype=PRECISIONS[precision][0])
                for tiling in best_of_each(fitting(case, precision, device)).values():
                    yield precision, case, tiling


def run(stage: Stage) -> None:
    if stage.dry:
        one_program_at_a_time()
    device = gpu(torch.empty(1, device=stage.torch_device))
    for precision, case, tiling in rows(device, stage.dry):
        for name, check in (("again", _again), ("graph", _graph)):
            measure = functools.partial(check, stage, precision, case, tiling)
            stage.row(f"{name}: {case}, {precision}: {tiling}", measure, tiling.schedule)


def _again(stage: Stage, precision: str, case: Case, tiling: Tiling) -> Row:
    problem = _on(stage.torch_device, draw(case))
    with switched(precision), only(tiling):
        first = _evaluate(problem, stage)
        differing: set[str] = set()
        for _ in range(1 if stage.dry else _REPEATS):
            with poisoned(stage.torch_device):  # other memory, another pace
                differing |= _differences(first, _evaluate(problem, stage))
    return {**_head(case, precision, tiling), "kind": "again", "bitwise": not differing, "differing": sorted(differing)}


def _graph(stage: Stage, precision: str, case: Case, tiling: Tiling) -> Row:
    """Capture forward and backward, replay on other numbers than those it was captured with, and compare with eager."""
    row = {**_head(case, precision, tiling), "kind": "graph"}
    if stage.dry:
        return {**row, "unsupported": "CUDA graphs need a GPU"}
    problem = draw(case)
    module = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[case.cell](**case.options())
    module = module.to(stage.torch_device, case.torch_dtype)
    input = torch.randn_like(problem.input, device=stage.torch_device)
    grad = problem.grads[0].to(stage.torch_device)
    parameters = dict(module.named_parameters())

    def step() -> Results:
        leaf = input.detach().requires_grad_()
        output = module(leaf)[0]
        grads = torch.autograd.grad(output, [leaf, *parameters.values()], grad)
        return {"output": output.detach(), **dict(zip(("grad of input", *parameters), grads, strict=True))}

    with switched(precision), only(tiling), rnnkernels.use_backend("triton"):
        replay = timing.captured(step)
        input.copy_(problem.input)
        replayed = {name: value.clone() for name, value in _results(replay()).items()}
        eager = step()
        differing = _differences(eager, replayed)
    return {**row, "bitwise": not differing, "differing": sorted(differing)}


def _results(value: object) -> Results:
    assert isinstance(value, dict)
    return value


def _head(case: Case, precision: str, tiling: Tiling) -> Row:
    return {"case": case.as_dict(), "precision": precision, "tiling": tiling._asdict()}


def _on(device: torch.device, problem: Problem) -> Problem:
    def move(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.to(device) for value in values)

    weights = {name: weight.to(device) for name, weight in problem.weights.items()}
    states, grads = move(problem.states), move(problem.grads)
    return Problem(problem.case, problem.input.to(device), problem.batch_sizes, states, weights, grads)


def _evaluate(problem: Problem, stage: Stage) -> Results:
    return evaluate(problem, "triton", stage.torch_device, problem.case.torch_dtype)


def _differences(first: Results, second: Results) -> set[str]:
    """Names of results whose bits differ; a NaN differs from everything."""
    return {name for name, value in first.items() if not torch.equal(value, second[name])}
