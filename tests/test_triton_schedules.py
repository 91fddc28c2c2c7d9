"""Each schedule and tiling of the Triton kernels, forward and backward, gives what torch.nn gives.

The interpreter's own choice is ``program`` or ``stepwise``; here each is asked for by name. The grid schedule needs programs that
run at once: test_triton_grid.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import Case, draw, evaluate, ours
from oracle import DTYPES, assert_within_budget

pytest.importorskip("triton", reason="Triton is not installed")

from rnnkernels.backends.triton import gru, lstm, sequence, tuning
from rnnkernels.backends.triton.plan import STEPWISE, Device, Tiling, Workload

pytestmark = pytest.mark.backends("triton")

CELLS = ("lstm", "gru")
#: One program for all units, its products whole and in parts.
PROGRAM = Tiling("program", 16, 16, 16, 1, 4)
SPLIT_IN_4 = Tiling("program", 32, 16, 32, 4, 4)
SPLIT_IN_8 = Tiling("program", 64, 32, 64, 8, 8)
#: A grid of one program: the grid's loops and chunks with nobody to wait for.
ONE_OF_A_GRID = Tiling("grid", 16, 16, 16, 1, 8)
CHUNKS_OF_A_GRID = Tiling("grid", 32, 16, 8, 4, 8)
TILINGS = [STEPWISE, PROGRAM, SPLIT_IN_4, SPLIT_IN_8, ONE_OF_A_GRID, CHUNKS_OF_A_GRID]
ONE_OF_EACH = [STEPWISE, PROGRAM, CHUNKS_OF_A_GRID]

SIZE = {"input_size": 5, "hidden_size": 13, "steps": 3}
STRUCTURES = [
    Case(cell, **SIZE, **options)
    for cell in CELLS
    for options in (
        {"batch": 3, "bidirectional": True, "bias": False},
        {"batch": 17},
        {"lengths": (4, 4, 2, 1), "bidirectional": True},
        {"lengths": (3,) * 9 + (2,) * 5 + (1,) * 4},
    )
]


@pytest.fixture(autouse=True)
def enough_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "device_of", lambda tensor: Device(1000, 1 << 20))


@pytest.mark.parametrize("case", STRUCTURES, ids=str)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_every_tiling_is_as_exact_as_torch_nn(backend: str, tiling: Tiling, case: Case) -> None:
    with tuning.forced(tiling):
        assert_within_budget(ours, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [STRUCTURES[0], STRUCTURES[6]], ids=str)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_every_tiling_is_as_exact_as_torch_nn_in_half_types(backend: str, tiling: Tiling, case: Case, dtype: torch.dtype) -> None:
    with tuning.forced(tiling):
        assert_within_budget(ours, replace(case, dtype=dtype))


@pytest.mark.parametrize("tiling", [PROGRAM, ONE_OF_A_GRID], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_row_blocks_left_for_further_launches_are_computed_too(
    backend: str, monkeypatch: pytest.MonkeyPatch, cell: str, tiling: Tiling
) -> None:
    monkeypatch.setattr(Tiling, "row_blocks_at_once", lambda *_: 2)
    with tuning.forced(tiling):
        assert_within_budget(ours, Case(cell, input_size=2, hidden_size=5, steps=2, batch=70, bidirectional=True))


@pytest.mark.parametrize("tiling", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("case", STRUCTURES[2:4] + STRUCTURES[6:8], ids=str)
def test_the_same_call_twice_gives_the_same_bits_whatever_new_memory_holds(
    backend: str, case: Case, tiling: Tiling, poisoned_memory: None
) -> None:
    problem = draw(case)
    with tuning.forced(tiling):
        poisoned = evaluate(ours, problem)
        torch.use_deterministic_algorithms(False)
        for name, value in evaluate(ours, problem).items():
            assert torch.equal(value, poisoned[name]), name


WHERE = ("input", "h_0", "grad_output", "grad_h_n")


@pytest.mark.parametrize("tiling", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize(("cell", "where"), [("lstm", "c_0"), *((cell, where) for cell in CELLS for where in WHERE)])
def test_poison_in_one_batch_row_stays_in_that_row(backend: str, cell: str, tiling: Tiling, where: str) -> None:
    problem = draw(Case(cell, hidden_size=7, steps=3, batch=4, bidirectional=True))
    names = ("input", "h_0", "c_0") if cell == "lstm" else ("input", "h_0")
    targets = dict(zip((*names, "grad_output", "grad_h_n"), (problem.input, *problem.states, *problem.grads), strict=False))
    with tuning.forced(tiling):
        clean = evaluate(ours, problem)
        targets[where][0, 1, 0] = float("nan")
        poisoned = evaluate(ours, problem)
    others = [0, 2, 3]
    for name, value in poisoned.items():
        if "_l" not in name:  # weight gradients sum over rows
            assert torch.equal(value[:, others], clean[name][:, others]), name
    assert not all(value.isfinite().all() for value in poisoned.values()), "the poison had no effect at all"


@pytest.mark.parametrize("tiling", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("cell", CELLS)
def test_gates_at_ten_thousand_give_no_nan(backend: str, cell: str, sign: int, tiling: Tiling) -> None:
    problem = draw(Case(cell, hidden_size=7))
    problem.weights["bias_ih_l0"].fill_(sign * 1e4)
    with tuning.forced(tiling):
        assert all(value.isfinite().all() for value in evaluate(ours, problem).values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_interpreter_takes_a_program_where_one_holds_the_weights(cell: str, dtype: torch.dtype) -> None:
    work = Workload(cell, False, 64, 3, 1, dtype.itemsize, "ieee")
    expected = "stepwise" if dtype == torch.float64 else "program"
    assert tuning.tiling_for(work, sequence.INTERPRETER, torch.empty(0, dtype=dtype)).schedule == expected


@pytest.mark.parametrize("module", [lstm, gru], ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_failing_launch_names_the_kernel_and_its_shape(backend: str, monkeypatch: pytest.MonkeyPatch, module) -> None:
    def fails(*_) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sequence, "start", fails)
    cell = module.__name__.rpartition(".")[2]
    with pytest.raises(RuntimeError, match=r"forward_kernel failed, grid \(.*steps=4, batch=3, .*out of luck"):
        evaluate(ours, draw(Case(cell)))
