"""The barrier among programs, run by concurrent programs: the grid schedule is right, and without its barrier it is caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from cases import Case, draw, evaluate, ours
from oracle import assert_within_budget

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl
from threaded_grid import Hang, Order, Race, ahead, all_programs_at_once, behind, shuffled

from rnnkernels.backends.triton import gru, lstm, sequence, tiles, tuning
from rnnkernels.backends.triton.plan import Device, Tiling

pytestmark = [pytest.mark.backends("triton"), pytest.mark.usefixtures("poisoned_memory")]

#: Three programs for 10 units, two chunks; small, for every access to memory may change threads.
TILING = Tiling("grid", units=4, rows=4, chunk=8, split=1, num_warps=4)
SIZE = {"input_size": 3, "hidden_size": 10, "steps": 3, "batch": 3}
CASES = [
    Case(cell, **SIZE, **options)
    for cell in ("lstm", "gru")
    for options in ({}, {"bidirectional": True}, {"lengths": (4, 2, 2, 1), "bidirectional": True}, {"dtype": torch.bfloat16})
]


@contextmanager
def grid(order: Order, tiling: Tiling = TILING, processors: int = 1000) -> Iterator[None]:
    """Compute with the grid schedule on so many processors, its programs in this order."""
    with pytest.MonkeyPatch.context() as patch, tuning.forced(tiling), all_programs_at_once(order):
        patch.setattr(sequence, "device_of", lambda tensor: Device(processors, 1 << 20))
        yield


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_programs_in_any_order_are_as_exact_as_torch_nn(backend: str, case: Case, seed: int) -> None:
    with grid(shuffled(seed)):
        assert_within_budget(ours, case)


@pytest.mark.parametrize("order", [ahead, behind])
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[4], CASES[6]], ids=str)
def test_a_program_as_far_ahead_as_it_gets_changes_no_bit(backend: str, case: Case, order: Order) -> None:
    problem = draw(case)
    with grid(order):
        expected = evaluate(ours, problem)
    with grid(shuffled(7)):
        for name, value in evaluate(ours, problem).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("case", [replace(case, batch=9) for case in CASES[:1] + CASES[4:6]], ids=str)
def test_row_blocks_in_several_launches_are_as_exact_as_torch_nn(backend: str, case: Case) -> None:
    """Three blocks of rows with as many processors as two (one, of both directions) need."""
    with grid(shuffled(1), processors=6):
        assert_within_budget(ours, case)


# --- what is wrong is caught ---------------------------------------------------------------------------------------------


@triton.jit
def no_barrier(arrived, expected, CAN_TRAP: tl.constexpr):
    pass


@triton.jit
def too_early(arrived, expected, CAN_TRAP: tl.constexpr):
    """Goes on when all but one have arrived."""
    tiles.barrier(arrived, expected - 1, CAN_TRAP)


@triton.jit
def too_late(arrived, expected, CAN_TRAP: tl.constexpr):
    """Waits for one program more than there are."""
    tiles.barrier(arrived, expected + 1, CAN_TRAP)


@triton.jit
def without_release(arrived, expected, CAN_TRAP: tl.constexpr):
    tl.atomic_add(arrived, 1, sem="relaxed", scope="gpu")
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < expected:
        pass


@triton.jit
def without_acquire(arrived, expected, CAN_TRAP: tl.constexpr):
    tl.atomic_add(arrived, 1, sem="release", scope="gpu")
    while tl.atomic_add(arrived, 0, sem="relaxed", scope="gpu") < expected:
        pass


MUTANTS = [(no_barrier, Race), (too_early, Race), (too_late, Hang), (without_release, Race), (without_acquire, Race)]


@pytest.mark.parametrize("order", [ahead, behind, shuffled(3)], ids=["ahead", "behind", "shuffled"])
@pytest.mark.parametrize(("mutant", "symptom"), MUTANTS, ids=lambda v: v.__name__)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_broken_barrier_is_caught_in_forward(
    backend: str, monkeypatch: pytest.MonkeyPatch, cell: str, mutant, symptom: type, order: Order
) -> None:
    case = Case(cell, **SIZE, wants=())
    monkeypatch.setattr(lstm if cell == "lstm" else gru, "barrier", mutant)
    with pytest.raises(symptom), grid(order):
        evaluate(ours, draw(case))


@pytest.mark.parametrize(("mutant", "symptom"), MUTANTS, ids=lambda v: v.__name__)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_broken_barrier_is_caught_in_backward(
    backend: str, monkeypatch: pytest.MonkeyPatch, cell: str, mutant, symptom: type
) -> None:
    problem = draw(Case(cell, **SIZE))
    with grid(ahead):
        outputs = _forward_with_gradients(problem)
        monkeypatch.setattr(lstm if cell == "lstm" else gru, "barrier", mutant)
        with pytest.raises(symptom):
            torch.autograd.backward(outputs, problem.grads)


def _forward_with_gradients(problem) -> tuple[torch.Tensor, ...]:
    states = tuple(s.requires_grad_() for s in problem.states)
    weights = {name: w.requires_grad_() for name, w in problem.weights.items()}
    return ours(problem.case, problem.input.requires_grad_(), states, weights)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_without_its_barrier_the_first_program_computes_from_memory_nobody_wrote(
    backend: str, monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    """The wrong numbers themselves, with nothing watching for races: new memory is NaN."""
    monkeypatch.setattr(lstm if cell == "lstm" else gru, "barrier", no_barrier)
    monkeypatch.setattr("threaded_grid._Clocks.load", lambda *_: None)
    monkeypatch.setattr("threaded_grid._Clocks.store", lambda *_: None)
    with grid(ahead):
        results = evaluate(ours, draw(Case(cell, **SIZE, wants=())))
    assert results["output"].isnan().any()


# --- the barrier by itself -----------------------------------------------------------------------------------------------


@triton.jit
def pass_it_on(values, arrived, ROUNDS: tl.constexpr):
    """Each round every program adds what its left neighbour had to what it has itself."""
    program, n = tl.program_id(0), tl.num_programs(0)
    for turn in range(ROUNDS):
        if turn > 0:
            tiles.barrier(arrived, turn * n, False)
        before = values + turn * n
        tl.store(before + n + program, tl.load(before + program) + tl.load(before + (program + n - 1) % n))


@pytest.mark.parametrize("programs", [1, 2, 5])
@pytest.mark.parametrize("order", [ahead, behind, *map(shuffled, range(5))])
def test_the_barrier_holds_every_program_until_the_last_has_arrived(interpreter: None, order: Order, programs: int) -> None:
    values, arrived = torch.full((5, programs), -1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    values[0] = torch.arange(programs)
    with all_programs_at_once(order):
        sequence.start(pass_it_on, (programs, 1, 1), {"values": values, "arrived": arrived, "ROUNDS": 4}, {})
    expected = [torch.arange(programs)]
    for _ in range(4):
        expected.append(expected[-1] + expected[-1].roll(1))
    assert torch.equal(values, torch.stack(expected))
    assert arrived.item() == 3 * programs


def test_a_wait_for_nothing_ends_with_an_error(interpreter: None) -> None:
    tensors = {"values": torch.zeros(5, 2, dtype=torch.int64), "arrived": torch.full((1,), -1, dtype=torch.int32)}
    with all_programs_at_once(ahead), pytest.raises(Hang, match="wait for what never comes"):
        sequence.start(pass_it_on, (2, 1, 1), tensors | {"ROUNDS": 4}, {})
