"""Stage 5: times and memory of our schedules and of each backend's plan, next to torch.nn (cuDNN), in one process, interleaved.

A row is one case: whole modules, the input's projection included, forward without gradients ("inference") or forward and the
gradients of the input and all weights ("training"). Times in seconds; ``speedup`` is the median over rounds of torch.nn's time by
ours. The contestant :data:`PRODUCTS` is what a layer does outside its recurrence, in one call each for all steps: x W_ih^T and,
in training, dx and dW_ih; less its time, ``us_per_step_alone`` is the recurrence without the projection, as some publish it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnkernels
from rnnkernels.precision import of_library_products

from ..cases import TORCH_CLASSES, Case, make_problem
from . import timing
from .problems import GATES
from .schedules import (
    BACKENDS,
    PRECISIONS,
    Choice,
    backend_of,
    best_of_each,
    fitting,
    gpu,
    only,
    planned,
    pretend_gpu,
    recorded,
    switched,
)
from .stage import Row, Stage

BASELINE = "torch.nn"
PLANS = {backend: f"{backend} plan" for backend in BACKENDS}
PRODUCTS = "products"

#: H and B, so ordered that the first few span the space.
SHAPES = (
    *((256, 64), (1024, 16), (512, 1), (128, 16), (64, 256), (512, 64), (768, 16), (256, 1), (1024, 64)),
    *((128, 256), (512, 256), (64, 1), (256, 16), (1024, 1), (128, 64), (512, 16), (64, 64), (768, 64)),
    *((256, 256), (1024, 256), (128, 1), (64, 16), (768, 1), (768, 256)),
)

STEPS = 512

#: H * B from which the stepwise schedules are timed although another fits. Below, they should lose, and would take most of the
#: time to do it; the stage tuning times them everywhere.
STEPWISE_FROM = 512 * 64

#: Shapes before the variants that cuDNN is slow at are timed, and on how many of them these are.
_BEFORE_VARIANTS, _VARIED = 9, 3

#: A contestant's results may be this far from torch.nn's (norm of the difference by norm) to be timed at all. It only keeps out
#: what computes something else: whether results are good enough is what the stage parity decides.
LIMIT = 0.1


def cases(dry: bool) -> Iterator[tuple[str, Case]]:
    """Precision and case, the most telling first."""
    if dry:
        yield "tf32", Case("gru", "training", 2, 2, 16, 16)
        yield "bfloat16", Case("lstm", "inference", 2, 2, 16, 16, dtype="bfloat16")
        return
    for place, (H, B) in enumerate(SHAPES):
        if place == _BEFORE_VARIANTS:
            yield from _variants()
        for precision in ("bfloat16", "float16", "tf32"):
            for mode in ("inference", "training"):
                for cell in ("lstm", "gru"):
                    yield precision, Case(cell, mode, STEPS, B, H, H, dtype=PRECISIONS[precision][0])


def _variants() -> Iterator[tuple[str, Case]]:
    """What cuDNN is slow at, and float32 as exact as it can be."""
    for H, B in SHAPES[:_VARIED]:
        for cell in ("lstm", "gru"):
            yield "bfloat16", Case(cell, "training", STEPS, B, H, H, dtype="bfloat16", bidirectional=True)
            yield "bfloat16", Case(cell, "training", STEPS, B, H, H, dtype="bfloat16", num_layers=2)
            yield "bfloat16", Case(cell, "training", STEPS, B, H, H, dtype="bfloat16", packed=True)
            yield "ieee", Case(cell, "training", STEPS, B, H, H)


def cudnn_algorithm(case: Case, backward: bool) -> str:
    """The class of algorithm that torch asks cuDNN for on compute capability 8.0 and later with at least 98 multiprocessors."""
    if case.packed or case.proj_size:
        return "STANDARD"
    if case.H <= (128 if backward else 192):
        return "PERSIST_STATIC_SMALL_H"
    one_layer = case.num_layers == 1 and not case.bidirectional and case.cell == "lstm"
    fitting_sizes = case.H <= 1024 and case.H % 128 == 0 and case.I % 128 == 0 and case.B % 8 == 0 and case.B <= 128
    return "PERSIST_STATIC" if case.dtype == "float16" and one_layer and fitting_sizes else "STANDARD"


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    todo = list(cases(stage.dry))
    for done, (precision, case) in enumerate(todo):
        # What is left of the time for what is left of the cases, but enough for a median and not much more.
        seconds = 0.01 if stage.dry else min(1.0, max(0.2, 0.5 * stage.seconds_left / (len(todo) - done)))
        stage.row(f"{case}, {precision}", functools.partial(_measure, stage, precision, case, seconds))


Scope = Callable[[], AbstractContextManager[None]]
Batch = tuple[Tensor, "Tensor | None"]  # (T, B, I), or packed (R, I) with the batch sizes


class Contestant:
    """A module and the scope it is called in."""

    def __init__(self, module: nn.Module, case: Case, precision: str, scope: Scope) -> None:
        self.module, self.case, self.precision, self.scope = module, case, precision, scope
        self.parameters = list(module.parameters())

    def __call__(self, batch: Batch, grad: Tensor) -> tuple[Tensor, ...]:
        with switched(self.precision), self.scope():
            if self.case.mode == "inference":
                with torch.no_grad():
                    return (self._output(*batch),)
            leaf = batch[0].detach().requires_grad_()
            output = self._output(leaf, batch[1])
            return output.detach(), *torch.autograd.grad(output, [leaf, *self.parameters], grad)

    def _output(self, x: Tensor, batch_sizes: Tensor | None) -> Tensor:
        output = self.module(x if batch_sizes is None else PackedSequence(x, batch_sizes))[0]
        return output if batch_sizes is None else output.data


def _measure(stage: Stage, precision: str, case: Case, seconds: float) -> Row:
    device = stage.torch_device
    row: Row = {"case": case.as_dict(), "precision": precision}
    ways = (False, True) if case.mode == "training" else (False,)
    row["cudnn_algorithm"] = [cudnn_algorithm(case, backward) for backward in ways]
    torch.manual_seed(0)
    options = {**case.options(), "device": device, "dtype": case.torch_dtype}
    baseline = TORCH_CLASSES[case.cell](**options)
    own = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[case.cell](**options)
    own.load_state_dict(baseline.state_dict())
    batch = _batch(case, device)
    width = case.H * (2 if case.bidirectional else 1)
    grad = torch.randn(*batch[0].shape[:-1], width, device=device).to(case.torch_dtype)
    choices = best_of_each(fitting(case, precision, gpu(grad)))
    plans = {backend: planned(case, precision, grad, backend) for backend in {choice.backend for choice in choices.values()}}
    row["plan"] = {
        backend: {way: {"name": str(choice), **choice.as_dict()} for way, choice in plan.items()}
        for backend, plan in plans.items()
    }
    blocked = stage.blocked()
    contestants, same = _contestants(choices, plans, case, blocked, dry=stage.dry)
    results: dict[str, Any] = {BASELINE: {}}
    calls: dict[str, Callable[[], Any]] = {
        BASELINE: functools.partial(Contestant(baseline, case, precision, contextlib.nullcontext), batch, grad)
    }
    for name, scope in contestants.items():
        calls[name] = functools.partial(Contestant(own, case, precision, scope), batch, grad)
        results[name] = {"choice": str(choices[name])} if name in choices else {}
    row["results"] = results
    broken = _admit(stage, calls, results)
    if broken is not None:
        return {**row, "schedule": broken, "error": results[broken]["error"]}
    if case.num_layers == 1:
        calls[PRODUCTS], results[PRODUCTS] = _products(case, precision, batch[0]), {}
    _time(stage, calls, results, case, seconds)
    for plan, schedule in same.items():
        results[plan] = {**results[schedule], "same_as": schedule}
    return row


def _batch(case: Case, device: torch.device) -> Batch:
    """Drawn on the device: on the host it would take longer than what is measured. Ragged lengths as in :func:`make_problem`."""
    if not case.packed:
        return torch.randn(case.T, case.B, case.I, device=device).to(case.torch_dtype), None
    short = replace(case, I=1, H=1)
    batch_sizes = make_problem(short, seed=0).input.batch_sizes
    return torch.randn(int(batch_sizes.sum()), case.I, device=device).to(case.torch_dtype), batch_sizes


def _contestants(
    choices: dict[str, Choice], plans: dict[str, dict[str, Choice]], case: Case, blocked: set[str], dry: bool
) -> tuple[dict[str, Scope], dict[str, str]]:
    """Who is timed, schedules and plans -> scope; and plans that are the same as one schedule -> which."""
    found: dict[str, Scope] = {}
    same: dict[str, str] = {}
    for backend, plan in plans.items():
        own = {n: choice for n, choice in choices.items() if choice.backend == backend and n not in blocked}
        if not dry and len(own) > 1 and case.H * case.B < STEPWISE_FROM:
            own.pop(f"{backend} stepwise", None)
        found |= {name: functools.partial(only, choice) for name, choice in own.items()}
        schedules = {choice.schedule for choice in plan.values()}
        # A schedule of the CUDA kernels is timed as each pass is planned for it; one of Triton's with one tiling for both.
        one = next(iter(schedules)) if len(schedules) == 1 else None
        if one in own and (backend == "cuda" or {own[one]} == set(plan.values())):
            same[PLANS[backend]] = one
        elif not blocked & schedules:
            found[PLANS[backend]] = functools.partial(rnnkernels.use_backend, backend_of(backend))
    return found, same


def _products(case: Case, precision: str, input: Tensor) -> Callable[[], Any]:
    """The matrix products of a layer that are not part of its recurrence."""
    x = input.flatten(0, -2)
    D, width = 2 if case.bidirectional else 1, GATES[case.cell] * case.H
    w_ih = [x.new_empty(width, case.I).normal_(std=case.H**-0.5) for _ in range(D)]
    grad = x.new_empty(x.size(0), width).normal_()

    def call() -> list[Tensor]:
        with switched(precision), of_library_products(x), torch.no_grad():
            products = [x @ w.t() for w in w_ih]
            if case.mode == "training":
                products += [product for w in w_ih for product in (grad @ w, grad.t() @ x)]
            return products

    return call


def _admit(stage: Stage, calls: dict[str, Callable[[], Any]], results: dict[str, Any]) -> str | None:
    """Call each contestant once, take out those that fail or compute something else, note what they launch and the peak of
    memory above what was there before. -> the one that broke the GPU's context, if one did."""
    expected = calls[BASELINE]()
    for name in list(calls):
        try:
            with recorded() as launches:
                actual, memory = _with_peak(calls[name])
            differences = [_distance(a, e) for a, e in zip(actual, expected, strict=True)]
        except RuntimeError as error:
            results[name]["error"] = str(error)[:1000]
            if stage.fault() is not None:
                return name
            del calls[name]
            continue
        results[name] |= {"difference": max(differences), "peak_memory_bytes": memory}
        if launches:
            results[name]["launches"] = launches
        if not max(differences) <= LIMIT:
            results[name]["error"] = f"results differ from torch.nn's by {max(differences):.3g} of their norm"
            del calls[name]
        del actual
    return None


def _with_peak(call: Callable[[], Any]) -> tuple[Any, int | None]:
    if not torch.cuda.is_available():
        return call(), None
    call()  # what is allocated once, cuBLAS's workspace for one, is not this call's
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


def _distance(actual: Tensor, expected: Tensor) -> float:
    value = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
    return value if value == value else float("inf")


def _time(stage: Stage, calls: dict[str, Callable[[], Any]], results: dict[str, Any], case: Case, seconds: float) -> None:
    rounds = 2 if stage.dry else 5
    for name, times in timing.wall_times(calls, BASELINE, stage.torch_device, 0.4 * seconds, rounds).items():
        results[name]["wall"] = times
    if stage.dry:
        for name in calls:
            results[name]["kernel_note"] = "CUDA graphs need a GPU"
        return
    replays = dict(calls)
    for name, call in calls.items():
        try:
            replays[name] = timing.captured(call)
        except RuntimeError as error:
            results[name]["kernel_note"] = f"eager, with pauses between launches: not captured: {str(error)[:500]}"
    kernels = timing.event_times(replays, BASELINE, 0.6 * seconds, rounds)
    for name, times in kernels.items():
        results[name] |= {"kernel": times, "us_per_step": times["median_s"] / case.T * 1e6}
        if PRODUCTS in kernels and name != PRODUCTS:
            alone = times["median_s"] - kernels[PRODUCTS]["median_s"]
            results[name]["us_per_step_alone"] = alone / case.T * 1e6
    replays.clear()
    gc.collect()
    torch.cuda.empty_cache()
