"""The error budget as a gate: a provider whose results are not torch.nn's is not timed.

The oracle is torch.nn in float64 on the case's own (rounded) weights and inputs. A provider may be off by twice what torch.nn
itself is off in the case's dtype, plus a floor of a few units in the last place of the largest element.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch.nn.utils.rnn import PackedSequence

from .cases import TORCH_CLASSES, Problem
from .providers.base import Results
from .providers.modules import prepare

#: Units in the last place of the largest element; tests/oracle.py has the measurement.
FLOOR_ULP = {torch.float32: 8, torch.float64: 8, torch.bfloat16: 1, torch.float16: 1}


class Mismatch(Exception):
    """A provider's results exceed the error budget; the message names the worst tensor."""


class Gate:
    """The yardstick of one problem: built once, applied to every provider."""

    def __init__(self, problem: Problem) -> None:
        self.eps = torch.finfo(problem.case.torch_dtype).eps
        self.oracle = _oracle(problem)
        errors = _errors(prepare(TORCH_CLASSES, problem).results(), self.oracle)
        if problem.case.dtype == "float64":
            # Most of the oracle is what torch.nn computes in float64, whose own error cannot be seen then; rounding errors scale
            # with the unit roundoff, so the float32 error, scaled down, stands for it.
            scale = self.eps / torch.finfo(torch.float32).eps
            of_float32 = _errors(prepare(TORCH_CLASSES, problem, torch.float32).results(), self.oracle)
            errors = {name: max(error, of_float32[name] * scale) for name, error in errors.items()}
        self.budget = {
            name: 2 * error + FLOOR_ULP[problem.case.torch_dtype] * self.eps * self.oracle[name].abs().max().item()
            for name, error in errors.items()
        }

    def check(self, provider: str, results: Results, omitted: Collection[str] = ()) -> float:
        """The largest share of its budget that any result uses; raises :class:`Mismatch` if that exceeds one.

        ``omitted`` results are not expected.
        """
        expected = self.oracle.keys() - set(omitted)
        if results.keys() != expected:
            raise Mismatch(f"{provider} returned {sorted(results)}, expected {sorted(expected)}")
        for name, value in results.items():
            if value.shape != self.oracle[name].shape:
                raise Mismatch(f"{provider}: {name} has shape {tuple(value.shape)}, not {tuple(self.oracle[name].shape)}")
        shares = {name: self._share(name, error) for name, error in _errors(results, self.oracle).items()}
        worst = max(shares, key=shares.__getitem__)
        if not shares[worst] <= 1:  # a NaN is no pass
            raise Mismatch(f"{provider}: the error of {worst} is {shares[worst]:.3g} times its budget")
        return shares[worst]

    def _share(self, name: str, error: float) -> float:
        # A result that is exactly zero (the gradient of W_hh after one step from a zero state) has no budget, and needs none.
        if error == 0:
            return 0.0
        return error / self.budget[name] if self.budget[name] else torch.inf


def _oracle(problem: Problem) -> Results:
    """torch.nn's results in float64. For a float64 case, where they have errors as large as those they are to show, weight
    gradients are sums over sequences computed one by one: over all rows at once torch's product is off by up to 16 units in the
    last place (T=61, B=33, I=100, H=201, against extended precision), by sequences by less than 3."""
    case = problem.case
    results = prepare(TORCH_CLASSES, problem, torch.float64).results()
    if case.dtype != "float64" or isinstance(problem.input, PackedSequence):
        return results
    sums = {name: torch.zeros_like(results[name]) for name in problem.weights if name in results}
    for b in range(case.B if sums else 0):
        inputs = problem.input[:, b : b + 1], problem.grad_output[:, b : b + 1]
        alone = Problem(replace(case, B=1), problem.weights, *inputs, problem.lengths[b : b + 1])
        for name, value in prepare(TORCH_CLASSES, alone, torch.float64).results().items():
            if name in sums:
                sums[name] += value
    return results | sums


def _errors(results: Results, oracle: Results) -> dict[str, float]:
    # A NaN would lose every comparison of max(): count it as infinitely wrong.
    return {name: (value.double() - oracle[name]).abs().nan_to_num(nan=torch.inf).max().item() for name, value in results.items()}
