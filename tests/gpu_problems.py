"""Problems computed on a GPU, and how exact the results must be there."""

from __future__ import annotations

import torch
from cases import Case, Implementation, Problem, evaluate, ours, torch_nn
from oracle import error, floor
from torch import Tensor

from rnnkernels.precision import allows_tf32


def on_gpu(implementation: Implementation) -> Implementation:
    """The implementation on the GPU; leaves and results stay on the CPU."""

    def moved(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        gpu_weights = {name: w.cuda() for name, w in weights.items()}
        return tuple(r.cpu() for r in implementation(case, input.cuda(), tuple(s.cuda() for s in states), gpu_weights))

    return moved


def assert_as_exact_as_cudnn(problem: Problem) -> None:
    """At most twice the error of torch.nn on this GPU, in the same dtype and precision, plus the floor."""
    exact = evaluate(torch_nn, problem.to(torch.float64))
    theirs, actual = evaluate(on_gpu(torch_nn), problem), evaluate(on_gpu(ours), problem)
    # TF32 multiplies numbers with as many digits as float16 has; cuDNN takes it where it likes.
    tf32 = problem.case.dtype == torch.float32 and allows_tf32()
    digits = torch.float16 if tf32 else problem.case.dtype
    for name, value in actual.items():
        allowed = 2 * error(theirs[name], exact[name]) + floor(digits) * torch.finfo(digits).eps
        assert error(value, exact[name]) <= allowed, f"{problem.case}: {name}"
