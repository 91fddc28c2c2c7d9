"""The yardstick itself: the two float64 oracles agree, the error budget accepts torch.nn's own noise and rejects mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import Case, Implementation, draw, evaluate, torch_nn
from oracle import DTYPES, assert_same_mathematics, assert_within_budget, equations, rewritten, violations, yardstick

CASES = [
    Case("lstm"),
    Case("gru"),
    Case("lstm", num_layers=2, bidirectional=True, proj_size=3),
    Case("gru", num_layers=3, bidirectional=True, lengths=(5, 3, 3, 1)),
    Case("lstm", bias=False, lengths=(4, 2, 1)),
    Case("lstm", input_size=33, hidden_size=65, steps=17, batch=7),
    Case("gru", input_size=65, hidden_size=33, steps=17, batch=7, bidirectional=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_nn_in_float64_agrees_with_the_written_out_equations(case: Case) -> None:
    problem = draw(replace(case, dtype=torch.float64))
    ours, theirs = evaluate(equations, problem), evaluate(torch_nn, problem)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_same_mathematics(ours[name], value, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget_accepts_torch_nn_on_the_problem_rewritten(case: Case, dtype: torch.dtype) -> None:
    assert_within_budget(rewritten(run=100), replace(case, dtype=dtype))


def _weights_scaled_by(factor: float) -> Implementation:
    def implementation(case, input, states, weights):
        return torch_nn(case, input, states, {name: w * factor for name, w in weights.items()})

    return implementation


def _forgets_grad_of_initial_state(case, input, states, weights):
    return torch_nn(case, input, (states[0].detach(), *states[1:]), weights)


def _rounds_the_input_to_half(case, input, states, weights):
    return torch_nn(case, input.bfloat16().to(input.dtype), states, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget_rejects_weights_that_are_a_few_roundings_off(case: Case, dtype: torch.dtype) -> None:
    wrong = _weights_scaled_by(1 + 64 * torch.finfo(dtype).eps)
    measured = yardstick(replace(case, dtype=dtype))
    assert violations(evaluate(wrong, measured.problem), measured)


@pytest.mark.parametrize("wrong", [_forgets_grad_of_initial_state, _rounds_the_input_to_half])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget_rejects_a_missing_gradient_and_a_lost_half_of_the_digits(case: Case, wrong: Implementation) -> None:
    measured = yardstick(case)
    assert violations(evaluate(wrong, measured.problem), measured)


def test_budget_rejects_nan_and_wrong_dtypes() -> None:
    measured = yardstick(CASES[0])
    results = evaluate(torch_nn, measured.problem)
    assert not violations(results, measured)
    assert violations(results | {"output": results["output"] * float("nan")}, measured)
    assert violations(results | {"output": results["output"].double()}, measured)
