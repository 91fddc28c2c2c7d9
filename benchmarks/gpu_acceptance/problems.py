"""The numbers of a case, results by name, and how far they may be from exact.

The oracle is torch.nn in float64 on the CPU, on the case's own (rounded) numbers. The yardstick is torch.nn on the GPU (cuDNN) in
the case's dtype and under the same TF32 switch: on each result ours may be off by twice as much, plus a floor. Where TF32 is
allowed the floor is float16's, which has as many digits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnkernels import functional, use_backend
from rnnkernels.precision import allows_tf32

from ..cases import TORCH_CLASSES, Case, make_problem
from ..gate import FLOOR_ULP

#: Runs of torch.nn that make up its error: one run's error is a random draw, and can be lucky.
RUNS = 3

#: Rows of a stack of gates, in units of the hidden size.
GATES = {"lstm": 4, "gru": 3}

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One layer with numbers in it, all on the CPU and in the case's dtype."""

    case: Case
    input: Tensor  # (T, B, I), or packed (R, I)
    batch_sizes: Tensor | None
    states: tuple[Tensor, ...]  # (D, B, ·)
    weights: dict[str, Tensor]
    grads: tuple[Tensor, ...]  # of the output and of the final states


@functools.lru_cache(maxsize=2)  # large ones take a second to draw, and several rows in a row share one
def draw(case: Case, seed: int = 0) -> Problem:
    """Weights as torch.nn draws them, all else normal."""
    drawn = make_problem(case, seed)
    data, batch_sizes = (drawn.input.data, drawn.input.batch_sizes) if case.packed else (drawn.input, None)
    shape = (2 if case.bidirectional else 1, case.B)
    widths = [case.proj_size or case.H, case.H][: 2 if case.cell == "lstm" else 1]
    normal = [torch.randn(*shape, width).to(case.torch_dtype) for width in (*widths, *widths)]
    n = len(widths)
    return Problem(case, data, batch_sizes, tuple(normal[:n]), drawn.weights, (drawn.grad_output, *normal[n:]))


def evaluate(problem: Problem, backend: str, device: torch.device, dtype: torch.dtype, renumbering: int = 0) -> Results:
    """Forward and backward of everything on one backend -> results by name.

    A ``renumbering`` other than 0 gives the hidden units and the inputs other numbers inside: the same results but for rounding,
    because every sum runs in another order.
    """
    case = problem.case

    def leaf(value: Tensor) -> Tensor:
        return value.detach().to(device, dtype, copy=True).requires_grad_()

    input, states = leaf(problem.input), tuple(leaf(state) for state in problem.states)
    weights = {name: leaf(weight) for name, weight in problem.weights.items()}
    with use_backend(backend):
        outputs = _forward(case, input, problem.batch_sizes, states, weights, renumbering)
        torch.autograd.backward(outputs, [grad.to(device, dtype) for grad in problem.grads])
    leaves = {"input": input, **dict(zip(("h_0", "c_0"), states, strict=False)), **weights}
    results = {name: value.detach() for name, value in zip(("output", "h_n", "c_n"), outputs, strict=False)}
    for name, value in leaves.items():
        assert value.grad is not None, f"no gradient reached {name}"
        results[f"grad of {name}"] = value.grad
    return results


def _forward(
    case: Case,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, ...],
    weights: dict[str, Tensor],
    renumbering: int,
) -> list[Tensor]:
    everything = slice(None)
    h_back, c_back, both_back = everything, everything, everything
    if renumbering:
        generator = torch.Generator().manual_seed(renumbering)
        unit, feature = (torch.randperm(n, generator=generator).to(input.device) for n in (case.H, case.I))
        row = torch.cat([gate * case.H + unit for gate in range(GATES[case.cell])])
        c_back, of_h = unit.argsort(), unit
        if case.proj_size:  # projected, h has no units
            of_h = everything
        else:
            h_back = c_back
            both_back = torch.cat([d * case.H + h_back for d in range(2 if case.bidirectional else 1)])
        input, states = input[..., feature], (states[0][..., of_h], *(c[..., unit] for c in states[1:]))
        columns = {"weight_ih": (row, feature), "weight_hh": (row, of_h), "weight_hr": (everything, unit)}
        weights = {
            name: weight[columns[name[:9]][0]][:, columns[name[:9]][1]] if name[:9] in columns else weight[row]
            for name, weight in weights.items()
        }
    options = {"bidirectional": case.bidirectional, "batch_sizes": batch_sizes, "train": True}
    if case.cell == "gru":
        output, *finals = functional.gru(input, states[0], list(weights.values()), **options)
    else:
        projected = {"has_projection": case.proj_size > 0}
        output, finals = functional.lstm(input, states, list(weights.values()), **options, **projected)
    return [output[..., both_back], finals[0][..., h_back], *(c_n[..., c_back] for c_n in finals[1:])]


@contextlib.contextmanager
def poisoned(device: torch.device) -> Iterator[None]:
    """Fill memory that nobody owns with NaN, so that results nobody wrote are seen: the allocator's free blocks, small and large,
    and whatever torch allocates inside without a value."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        small = [torch.full((1 << 18,), 0xFF, dtype=torch.uint8, device=device) for _ in range(64)]
        large = torch.full((1 << 29,), 0xFF, dtype=torch.uint8, device=device)  # all ones is NaN in every floating dtype
        del small, large
    deterministic, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # what makes torch fill new memory; the default is NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)


class Budget:
    """What a problem's results should be, and how far off they may be."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        dtype = problem.case.torch_dtype
        digits = torch.float16 if dtype == torch.float32 and allows_tf32() else dtype
        self.eps, self.floor = torch.finfo(dtype).eps, FLOOR_ULP[digits] * torch.finfo(digits).eps
        self.exact = evaluate(problem, "aten", torch.device("cpu"), torch.float64)
        runs = [evaluate(problem, "aten", device, dtype, run) for run in range(RUNS)]
        self.torchs = {name: max(_error(run[name], exact) for run in runs) for name, exact in self.exact.items()}

    def check(self, results: Results) -> dict[str, Any]:
        """Every result's share of its budget, and where the worst one is worst. Errors in units of the dtype's epsilon, relative
        to the largest exact value."""
        if results.keys() != self.exact.keys():
            raise ValueError(f"results {sorted(results)}, expected {sorted(self.exact)}")
        shares = {}
        for name, value in results.items():
            if value.shape != self.exact[name].shape:
                raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(self.exact[name].shape)}")
            error = _error(value, self.exact[name])
            shares[name] = error / (2 * self.torchs[name] + self.floor)
        worst = max(shares, key=shares.__getitem__)
        return {
            "within_budget": shares[worst] <= 1,
            "share": shares[worst],
            "worst": {
                "result": worst,
                "error_eps": _error(results[worst], self.exact[worst]) / self.eps,
                "torch_error_eps": self.torchs[worst] / self.eps,
                **_position(results[worst], self.exact[worst]),
            },
            "shares": {name: round(share, 3) for name, share in shares.items()},
        }


def _difference(actual: Tensor, exact: Tensor) -> Tensor:
    # A NaN would lose every comparison: count it as infinitely wrong.
    return (actual.cpu().double() - exact).abs().nan_to_num(nan=math.inf, posinf=math.inf)


def _error(actual: Tensor, exact: Tensor) -> float:
    """Largest difference, as a fraction of the largest exact value."""
    difference, scale = _difference(actual, exact).max().item(), exact.abs().max().item()
    if difference < torch.finfo(actual.dtype).tiny:
        return 0.0
    return difference / scale if scale else math.inf


def _position(actual: Tensor, exact: Tensor) -> dict[str, Any]:
    difference = _difference(actual, exact)
    index = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    finite = bool(actual.isfinite().all())
    return {"at": list(index), "actual": float(actual[index]), "exact": float(exact[index]), "all_finite": finite}


__all__ = ["RUNS", "TORCH_CLASSES", "Budget", "Problem", "Results", "draw", "evaluate", "poisoned"]
