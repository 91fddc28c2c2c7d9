"""Autocast on the CPU: result dtypes are torch.nn's, gradients have their parameters', operators compute what functions do."""

from __future__ import annotations

import pytest
import torch
from cases import Case, draw, evaluate, ours, torch_nn
from marks import TORCH_LOWERS_LSTM, every_backend
from oracle import error, floor
from torch import Tensor

from rnnkernels import functional
from rnnkernels.layout import operator

CELLS = ("lstm", "gru")


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_give_torch_nns_dtypes_and_exactness(backend: str, cell: str, dtype: torch.dtype) -> None:
    problem = draw(Case(cell, num_layers=2, bidirectional=True, dtype=dtype))
    exact = evaluate(torch_nn, problem.to(torch.float64))
    torch_fails = cell == "lstm" and not TORCH_LOWERS_LSTM
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(ours, problem)
        theirs = {} if torch_fails else evaluate(torch_nn, problem)
    if torch_fails:
        lowered = evaluate(torch_nn, problem.to(torch.bfloat16))
        theirs = {n: v.to(dtype) if n.startswith("grad of") else v for n, v in lowered.items()}
    assert {n: v.dtype for n, v in actual.items()} == {n: v.dtype for n, v in theirs.items()}
    computed_in = theirs["output"].dtype
    for name, value in actual.items():
        allowed = 2 * error(theirs[name], exact[name]) + floor(computed_in) * torch.finfo(computed_in).eps
        assert error(value, exact[name]) <= allowed, name


@pytest.mark.parametrize("cell", CELLS)
def test_float64_is_never_lowered(backend: str, cell: str) -> None:
    problem = draw(Case(cell, dtype=torch.float64))  # torch.nn raises here: "Unexpected floating ScalarType"
    expected = evaluate(ours, problem)
    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate(ours, problem)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


def test_float16_autocast_lowers_lstm_layers_too(backend: str) -> None:
    problem = draw(Case("lstm"))  # torch.nn raises here: oneDNN has no float16 LSTM for training
    with torch.autocast("cpu", torch.float16):
        results = evaluate(ours, problem)
    assert results["output"].dtype == torch.float16
    assert {v.dtype for n, v in results.items() if n.startswith("grad of")} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_cells_give_torch_nns_dtypes(backend: str, cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, dtype=dtype)
    weights = [w.requires_grad_() for w in draw(case).weights.values()]
    x, h = torch.randn(3, 5, dtype=dtype), torch.randn(3, 7, dtype=dtype)
    state = (h, h.clone()) if cell == "lstm" else h
    with torch.autocast("cpu", torch.bfloat16):
        actual = getattr(functional, f"{cell}_cell")(x, state, *weights)
        expected = getattr(torch._VF, f"{cell}_cell")(x, state, *weights)
    actual, expected = ((v,) if isinstance(v, Tensor) else v for v in (actual, expected))
    assert [v.dtype for v in actual] == [v.dtype for v in expected]
    grads = torch.autograd.grad(sum(v.sum() for v in actual), weights)
    assert {g.dtype for g in grads} == {dtype}


@pytest.mark.parametrize("cell", CELLS)
def test_mixed_dtypes_are_accepted_under_autocast_only(backend: str, cell: str) -> None:
    weights = [w.detach() for w in draw(Case(cell)).weights.values()]
    x = torch.randn(4, 3, 5, dtype=torch.bfloat16)
    function = getattr(functional, cell)
    with pytest.raises(ValueError, match="does not match weight dtype"):
        function(x, None, weights)
    with torch.autocast("cpu", torch.bfloat16):
        output = function(x, None, weights)[0]
    assert output.dtype == torch.bfloat16  # GRU: as the states, which were left out and are zeros of the input's dtype


@pytest.mark.parametrize("cell", CELLS)
def test_a_disabled_inner_region_computes_in_the_given_dtype(backend: str, cell: str) -> None:
    problem = draw(Case(cell))
    expected = evaluate(ours, problem)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        actual = evaluate(ours, problem)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


@every_backend
@pytest.mark.parametrize("cell", CELLS)
def test_backward_outside_the_autocast_region_equals_backward_inside(backend: str, cell: str) -> None:
    problem = draw(Case(cell))
    weights = [w.requires_grad_() for w in problem.weights.values()]
    with torch.autocast("cpu", torch.bfloat16):
        loss = getattr(functional, cell)(problem.input, None, weights)[0].float().square().sum()
        inside = torch.autograd.grad(loss, weights, retain_graph=True)
    outside = torch.autograd.grad(loss, weights)
    for one, two in zip(inside, outside, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_operators_follow_autocast_as_the_functions_do(backend: str, cell: str, requires_grad: bool) -> None:
    problem = draw(Case(cell))
    weights = [w.requires_grad_(requires_grad) for w in problem.weights.values()]
    flags = (True, False, False) if cell == "lstm" else (True, False)
    op = operator({"cpu": "", "reference": "reference_"}[backend], f"{cell}_forward")
    hx = problem.states if cell == "lstm" else problem.states[0]
    with torch.autocast("cpu", torch.bfloat16):
        expected = getattr(functional, cell)(problem.input, hx, weights)[0]
        actual = op(problem.input, None, *problem.states, weights, *flags, requires_grad)[0]
    assert torch.equal(actual, expected)
    if requires_grad:
        actual.float().sum().backward()
        assert {w.grad.dtype for w in weights} == {torch.float32}
