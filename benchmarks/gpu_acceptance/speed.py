"""Stage 4: times and memory of our schedules and of the plan's choice, next to torch.nn (cuDNN), in one process, interleaved.

A row is one case: whole modules, the input's projection included, forward without gradients ("inference") or forward and the
gradients of the input and all weights ("training"). Times in seconds; ``speedup`` is the median over rounds of torch.nn's time by
ours.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import rnnkernels
from rnnkernels.backends.triton.plan import Tiling

from ..cases import TORCH_CLASSES, Case
from . import timing
from .schedules import PRECISIONS, STEPWISE, best_of_each, fitting, gpu, one_program_at_a_time, only, planned, recorded, switched
from .stage import Row, Stage

BASELINE = "torch.nn"
PLAN = "plan"

#: H and B, so ordered that the first few span the space.
SHAPES = (
    *((256, 64), (1024, 16), (512, 1), (128, 16), (64, 256), (512, 64), (768, 16), (256, 1), (1024, 64)),
    *((128, 256), (512, 256), (64, 1), (256, 16), (1024, 1), (128, 64), (512, 16), (64, 64), (768, 64)),
    *((256, 256), (1024, 256), (128, 1), (64, 16), (768, 1), (768, 256)),
)

STEPS = 512

#: H * B from which the stepwise schedule is timed although another fits. Below, it should lose, and would take most of the time
#: to do it; the stage tuning times it everywhere.
STEPWISE_FROM = 512 * 64

#: A contestant's results may be this far from torch.nn's (norm of the difference by norm) to be timed at all. It only keeps out
#: what computes something else: whether results are good enough is what the stage parity decides.
LIMIT = 0.1


def cases(dry: bool) -> Iterator[tuple[str, Case]]:
    """Precision and case, the most telling first."""
    for H, B in ((8, 2),) if dry else SHAPES:
        for precision in ("tf32",) if dry else ("bfloat16", "float16", "tf32"):
            for mode in ("inference", "training"):
                for cell in ("lstm", "gru"):
                    yield precision, Case(cell, mode, 2 if dry else STEPS, B, H, H, dtype=PRECISIONS[precision][0])
    if not dry:  # float32 as exact as it can be, and the variants that cuDNN is slow at
        for H, B in SHAPES[:4]:
            for cell in ("lstm", "gru"):
                yield "ieee", Case(cell, "training", STEPS, B, H, H)
                yield "bfloat16", Case(cell, "training", STEPS, B, H, H, dtype="bfloat16", bidirectional=True)
                yield "bfloat16", Case(cell, "training", STEPS, B, H, H, dtype="bfloat16", num_layers=2)


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
        one_program_at_a_time()
    todo = list(cases(stage.dry))
    for done, (precision, case) in enumerate(todo):
        # What is left of the time for what is left of the cases, but enough for a median and not much more.
        seconds = 0.01 if stage.dry else min(1.0, max(0.2, 0.5 * stage.seconds_left / (len(todo) - done)))
        stage.row(f"{case}, {precision}", functools.partial(_measure, stage, precision, case, seconds))


class Contestant:
    """A module and the scope it is called in."""

    def __init__(self, module: nn.Module, case: Case, precision: str, tiling: Tiling | None, ours: bool) -> None:
        self.module, self.case, self.precision, self.tiling, self.ours = module, case, precision, tiling, ours
        self.parameters = list(module.parameters())

    def __call__(self, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        backend = "triton" if self.ours else "auto"
        with switched(self.precision), rnnkernels.use_backend(backend), only(self.tiling):
            if self.case.mode == "inference":
                with torch.no_grad():
                    return (self.module(x)[0],)
            leaf = x.detach().requires_grad_()
            output = self.module(leaf)[0]
            return output.detach(), *torch.autograd.grad(output, [leaf, *self.parameters], grad)


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
    x = torch.randn(case.T, case.B, case.I, device=device).to(case.torch_dtype)
    choice = planned(case, precision, x)
    row["plan"] = {way: str(tiling) for way, tiling in choice.items()}
    contestants = {BASELINE: Contestant(baseline, case, precision, None, ours=False)}
    blocked = stage.blocked()
    tilings = {n: t for n, t in best_of_each(fitting(case, precision, gpu(x))).items() if n not in blocked}
    if not stage.dry and len(tilings) > 1 and case.H * case.B < STEPWISE_FROM:
        del tilings[STEPWISE.schedule]
    for schedule, tiling in tilings.items():
        contestants[schedule] = Contestant(own, case, precision, tiling, ours=True)
    same = next((name for name, tiling in tilings.items() if {tiling} == set(choice.values())), None)
    if same is None and not blocked & {tiling.schedule for tiling in choice.values()}:
        contestants[PLAN] = Contestant(own, case, precision, None, ours=True)
    grad = torch.randn(case.T, case.B, case.H * (2 if case.bidirectional else 1), device=device).to(case.torch_dtype)
    calls = {name: functools.partial(contestant, x, grad) for name, contestant in contestants.items()}
    results: dict[str, Any] = {name: {} for name in calls}
    for name, tiling in tilings.items():
        results[name]["tiling"] = str(tiling)
    row["results"] = results
    broken = _admit(stage, calls, results)
    if broken is not None:
        return {**row, "schedule": broken, "error": results[broken]["error"]}
    _time(stage, calls, results, case, seconds)
    if same is not None:
        results[PLAN] = {**results[same], "same_as": same}
    return row


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
    for name, times in timing.event_times(replays, BASELINE, 0.6 * seconds, rounds).items():
        results[name] |= {"kernel": times, "us_per_step": times["median_s"] / case.T * 1e6}
    replays.clear()
    gc.collect()
    torch.cuda.empty_cache()
