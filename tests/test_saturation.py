"""Gates far beyond saturation, infinities, and NaN that stays in its row of the batch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from cases import GATES, Case, Problem, draw, evaluate, ours, torch_nn
from marks import every_backend
from oracle import DTYPES, assert_problem_within_budget, measure

CELLS = ("lstm", "gru")


def _with_gate_biases(case: Case, biases: tuple[float, ...]) -> Problem:
    problem = draw(case)
    bias = torch.tensor(biases, dtype=case.dtype).repeat_interleave(case.hidden_size)
    return replace(problem, weights=problem.weights | {"bias_ih_l0": bias})


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("cell", "biases"),
    [(cell, biases) for cell in CELLS for biases in itertools.product((1e4, -1e4), repeat=GATES[cell])],
)
def test_gates_at_ten_thousand_saturate_as_the_maths_does(
    backend: str, cell: str, biases: tuple[float, ...], dtype: torch.dtype
) -> None:
    case = Case(cell, hidden_size=17, batch=5, dtype=dtype)
    assert_problem_within_budget(ours, measure(_with_gate_biases(case, biases), runs=1))


@every_backend
@pytest.mark.parametrize("size", [80, 89, 100, 104, 709, 746, 1e6, 1e30, 3e38])
@pytest.mark.parametrize("cell", CELLS)
def test_no_gate_value_overflows_on_its_way_to_saturation(backend: str, cell: str, size: float) -> None:
    """Around where exp leaves float32 (88.7, 103.97 for its subnormals) and float64 (709.8, 745.1), and at the end of float32."""
    for dtype in (torch.float32, torch.float64):
        for sign in (1, -1):
            problem = _with_gate_biases(Case(cell, hidden_size=17, dtype=dtype), (sign * size,) * GATES[cell])
            assert_problem_within_budget(ours, measure(problem))


@every_backend
@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_infinite_input_gives_nan_only_where_the_maths_does(backend: str, cell: str, dtype: torch.dtype, infinity: float) -> None:
    problem = draw(Case(cell, hidden_size=17, batch=5, dtype=dtype))
    problem.input[1, 2, 3] = infinity  # one infinity: no gate adds infinities of both signs
    exact, actual = evaluate(torch_nn, problem.to(torch.float64)), evaluate(ours, problem)
    assert exact["output"].isfinite().all()
    for name, value in actual.items():
        assert torch.equal(value.isfinite(), exact[name].isfinite()), name
        assert torch.equal(value.isnan(), exact[name].isnan()), name


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_huge_cell_state_saturates_tanh(backend: str, dtype: torch.dtype) -> None:
    problem = draw(Case("lstm", hidden_size=17, dtype=dtype))
    problem.states[1].mul_(1e4)
    assert_problem_within_budget(ours, measure(problem, runs=1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["input", "h_0", "c_0", "grad_output", "grad_h_n"])
@pytest.mark.parametrize(
    "case",
    [
        case
        for cell in CELLS
        for case in (
            Case(cell, hidden_size=17, steps=4, batch=9),
            Case(cell, hidden_size=5, steps=3, batch=2, bidirectional=True),
            Case(cell, hidden_size=7, lengths=(5, 4, 4, 2, 1), bidirectional=True, num_layers=2),
            Case(cell, hidden_size=33, steps=3, batch=17, dtype=torch.bfloat16),
        )
    ],
    ids=str,
)
def test_poison_in_one_batch_row_stays_in_that_row(backend: str, case: Case, where: str, poison: float) -> None:
    """Every other row's outputs and gradients keep their bits, whatever the poisoned row holds."""
    if where == "c_0" and case.cell == "gru":
        pytest.skip("a GRU has no cell state")
    problem = draw(case)
    clean = evaluate(ours, problem)
    row = 1
    target = {
        "input": problem.input,
        "h_0": problem.states[0],
        "c_0": problem.states[-1],
        "grad_output": problem.grads[0],
        "grad_h_n": problem.grads[1],
    }[where]
    # In the first of the leading axis, or of a packed batch's steps, which its rows begin with.
    (target[0] if target.dim() == 3 else target)[row, 0] = poison
    poisoned = evaluate(ours, problem)
    for name, value in poisoned.items():
        if "_l" in name:
            continue  # weight gradients sum over rows
        assert torch.equal(_other_rows(value, case, row), _other_rows(clean[name], case, row)), name
    assert not all(value.isfinite().all() for value in poisoned.values()), "the poison had no effect at all"


def _other_rows(value: torch.Tensor, case: Case, row: int) -> torch.Tensor:
    """All but one row of the batch, of (., N, .) or packed (R, .)."""
    if value.dim() == 3:
        return torch.cat((value[:, :row], value[:, row + 1 :]), dim=1)
    return torch.cat([torch.cat((step[:row], step[row + 1 :])) for step in value.split(case.batch_sizes.tolist())])
