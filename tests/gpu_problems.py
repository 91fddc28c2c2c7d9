"""Problems computed on a GPU, and how exact the results must be there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import Case, Implementation, Problem, draw, evaluate, ours, torch_nn
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


def assert_a_graph_replays_on_new_input(step: Callable[[], tuple[Tensor, ...]], x: Tensor, case: Case) -> None:
    """Captured once, ``step``, which reads ``x``, gives the bits of a call when ``x`` holds another problem's input."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        x.copy_(draw(case, seed).input)
        graph.replay()
        for value, wanted in zip(captured, step(), strict=True):
            assert torch.equal(value, wanted)
