"""Stage 4: the same inputs give the same bits, again and again, eagerly and from a replayed CUDA graph.

Many steps and many programs: a missing barrier shows as bits that differ from run to run long before it shows as an error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

import rnnkernels

from ..cases import Case
from . import timing
from .problems import Problem, Results, draw, evaluate, poisoned
from .schedules import PRECISIONS, Choice, Gpu, backend_of, best_of_each, fitting, gpu, only, pretend_gpu, switched
from .stage import Row, Stage

_REPEATS = 6

#: T, B, H: one program's or CTA's size, that of a cluster or a grid, and a grid's with several launches and all processors busy.
_SHAPES = ((512, 48, 64), (512, 64, 512), (300, 150, 1024))


def rows(gpu: Gpu, dry: bool) -> Iterator[tuple[str, Case, Choice]]:
    for T, B, H in ((2, 2, 16),) if dry else _SHAPES:
        for precision in ("bfloat16",) if dry else ("bfloat16", "tf32"):
            for cell in ("gru",) if dry else ("lstm", "gru"):
                case = Case(cell, "training", T, B, H, H, dtype=PRECISIONS[precision][0])
                for choice in best_of_each(fitting(case, precision, gpu)).values():
                    yield precision, case, choice


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    device = gpu(torch.empty(1, device=stage.torch_device))
    for precision, case, choice in rows(device, stage.dry):
        for name, check in (("again", _again), ("graph", _graph)):
            measure = functools.partial(check, stage, precision, case, choice)
            stage.row(f"{name}: {case}, {precision}: {choice}", measure, choice.schedule)


def _again(stage: Stage, precision: str, case: Case, choice: Choice) -> Row:
    problem = _on(stage.torch_device, draw(case))
    with switched(precision), only(choice):
        first = _evaluate(problem, choice)
        differing: set[str] = set()
        for _ in range(1 if stage.dry else _REPEATS):
            with poisoned(stage.torch_device):  # other memory, another pace
                differing |= _differences(first, _evaluate(problem, choice))
    return {**_head(case, precision, choice), "kind": "again", "bitwise": not differing, "differing": sorted(differing)}


def _graph(stage: Stage, precision: str, case: Case, choice: Choice) -> Row:
    """Capture forward and backward, replay on other numbers than those it was captured with, and compare with eager."""
    row = {**_head(case, precision, choice), "kind": "graph"}
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

    with switched(precision), only(choice):
        replay = timing.captured(step)
        input.copy_(problem.input)
        replayed = {name: value.clone() for name, value in _results(replay()).items()}
        eager = step()
        differing = _differences(eager, replayed)
    return {**row, "bitwise": not differing, "differing": sorted(differing)}


def _results(value: object) -> Results:
    assert isinstance(value, dict)
    return value


def _head(case: Case, precision: str, choice: Choice) -> Row:
    return {"case": case.as_dict(), "precision": precision, "choice": choice.as_dict()}


def _on(device: torch.device, problem: Problem) -> Problem:
    def move(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.to(device) for value in values)

    weights = {name: weight.to(device) for name, weight in problem.weights.items()}
    states, grads = move(problem.states), move(problem.grads)
    return Problem(problem.case, problem.input.to(device), problem.batch_sizes, states, weights, grads)


def _evaluate(problem: Problem, choice: Choice) -> Results:
    return evaluate(problem, backend_of(choice.backend), problem.input.device, problem.case.torch_dtype)


def _differences(first: Results, second: Results) -> set[str]:
    """Names of results whose bits differ; a NaN differs from everything."""
    return {name for name, value in first.items() if not torch.equal(value, second[name])}
