"""The reference's written-out backward is the derivative of its forward."""

from __future__ import annotations

import pytest
import torch
from cases import Case, draw
from oracle import assert_same_mathematics

from rnnkernels.backends import reference
from rnnkernels.layout import SAVED_GATES

F64 = torch.float64
CASES = [
    Case(cell, dtype=F64, bias=bias, bidirectional=both, lengths=lengths)
    for cell in ("lstm", "gru")
    for bias in (True, False)
    for both in (True, False)
    for lengths in (None, (5, 3, 3, 1), (1, 1), (6,))
] + [
    Case("lstm", dtype=F64, proj_size=3),
    Case("lstm", dtype=F64, proj_size=4, bidirectional=True, lengths=(4, 4, 2), bias=False),
]


def _forward_and_backward(case: Case):
    flags = (case.bias, bool(case.proj_size), case.bidirectional) if case.cell == "lstm" else (case.bias, case.bidirectional)
    return getattr(reference, f"{case.cell}_forward"), getattr(reference, f"{case.cell}_backward"), flags


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_equals_autograd_through_forward(case: Case) -> None:
    forward, backward, flags = _forward_and_backward(case)
    problem = draw(case)
    leaves = [t.requires_grad_() for t in (problem.input, *problem.states, *problem.weights.values())]
    n = len(problem.states)
    input, states, weights = leaves[0], leaves[1 : n + 1], leaves[n + 1 :]
    output, *rest = forward(input, case.batch_sizes, *states, weights, *flags, True)
    expected = torch.autograd.grad((output, *rest[:n]), leaves, problem.grads)
    with torch.no_grad():
        *own, d_weights = backward(
            *problem.grads, input, case.batch_sizes, *states, weights, output, *rest[n:], *flags, True, True
        )
    names = ["input", "h_0", "c_0"][: n + 1] + list(problem.weights)
    for name, value, wanted in zip(names, [*own, *d_weights], expected, strict=True):
        assert_same_mathematics(value, wanted, f"grad of {name}")


@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_missing_output_gradient_counts_as_zero(cell: str, missing: tuple[int, ...]) -> None:
    case = Case(cell, dtype=F64, bidirectional=True, lengths=(4, 2, 1))
    _, backward, flags = _forward_and_backward(case)
    forward = _forward_and_backward(case)[0]
    problem = draw(case)
    weights = list(problem.weights.values())
    n = len(problem.states)
    output, *rest = forward(problem.input, case.batch_sizes, *problem.states, weights, *flags, True)
    operands = (problem.input, case.batch_sizes, *problem.states, weights, output, *rest[n:], *flags, True, True)
    with_none = backward(*(None if i in missing else g for i, g in enumerate(problem.grads)), *operands)
    with_zero = backward(*(torch.zeros_like(g) if i in missing else g for i, g in enumerate(problem.grads)), *operands)
    for own, wanted in zip((*with_none[:-1], *with_none[-1]), (*with_zero[:-1], *with_zero[-1]), strict=True):
        assert torch.equal(own, wanted)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_saved_tensors_have_the_shapes_and_dtypes_of_the_contract(cell: str, dtype: torch.dtype, save: bool) -> None:
    case = Case(cell, dtype=dtype, bidirectional=True)
    forward, _, flags = _forward_and_backward(case)
    problem = draw(case)
    results = forward(problem.input, None, *problem.states, list(problem.weights.values()), *flags, save)
    gates = results[1 + len(problem.states)]
    assert gates.shape == ((2, case.steps, case.batch, SAVED_GATES, case.hidden_size) if save else (0,))
    assert gates.dtype == dtype
    if cell == "lstm":
        assert results[-1].shape == ((2, case.steps, case.batch, case.hidden_size) if save else (0,))
        assert results[-1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
