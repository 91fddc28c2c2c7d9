"""The error budget as a gate: a provider whose results are not torch.nn's is not timed.

The oracle is torch.nn in float64 on the case's own (rounded) weights and inputs. A provider may be off by twice what torch.nn
itself is off in the case's dtype, plus a floor of a few units in the last place of the largest element.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

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
        self.oracle = prepare(TORCH_CLASSES, problem, torch.float64).results()
        # torch.nn in float64 is the oracle, so its own float64 error cannot be seen; rounding errors scale with the unit
        # roundoff, so the float32 error, scaled down, stands for it.
        yardstick = torch.float32 if problem.case.dtype == "float64" else problem.case.torch_dtype
        scale = self.eps / torch.finfo(yardstick).eps
        errors = _errors(prepare(TORCH_CLASSES, problem, yardstick).results(), self.oracle)
        self.budget = {
            name: 2 * error * scale + FLOOR_ULP[problem.case.torch_dtype] * self.eps * self.oracle[name].abs().max().item()
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


def _errors(results: Results, oracle: Results) -> dict[str, float]:
    # A NaN would lose every comparison of max(): count it as infinitely wrong.
    return {name: (value.double() - oracle[name]).abs().nan_to_num(nan=torch.inf).max().item() for name, value in results.items()}
