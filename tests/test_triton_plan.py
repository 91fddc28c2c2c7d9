"""Which schedule and tiles a layer gets, on GPUs that are not here: something always fits, and nothing is promised twice."""

from __future__ import annotations

import itertools

import pytest
import torch

from rnnkernels import Request, explain, use_backend
from rnnkernels.backends import triton
from rnnkernels.backends.triton.plan import STEPWISE, Device, Tiling, Workload, candidates, plan, shared_memory, why_stepwise

A100, H200, SMALL = Device(108, 166912), Device(132, 232448), Device(20, 101376)
DEVICES = [A100, H200, SMALL]
INTERPRETER = Device(0, 1 << 30)

SIZES = (1, 15, 16, 17, 64, 65, 100, 128, 129, 256, 500, 512, 768, 1000, 1024, 1536, 2048, 4096)
WORKLOADS = [
    Workload(cell, backward, hidden_size, batch, directions, size, precision)
    for cell, backward, hidden_size, batch, directions, (size, precision) in itertools.product(
        ("lstm", "gru"), (False, True), SIZES, (1, 16, 100, 1000), (1, 2), ((2, "ieee"), (4, "tf32"), (4, "tf32x3"), (8, "ieee"))
    )
]


def lstm(hidden_size: int = 128, **changes) -> Workload:
    return Workload("lstm", False, hidden_size, 16, 1, 2, "ieee")._replace(**changes)


@pytest.mark.parametrize("device", [*DEVICES, INTERPRETER], ids=str)
def test_stepwise_is_offered_to_every_layer_and_comes_last(device: Device) -> None:
    for work in WORKLOADS:
        found = candidates(work, device)
        assert found[-1] == STEPWISE
        assert found[0] == plan(work, device)
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_what_is_offered_fits_the_shared_memory(device: Device) -> None:
    for work in WORKLOADS:
        for tiling in candidates(work, device)[:-1]:
            assert shared_memory(tiling, work) <= device.shared_memory, (work, tiling)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_programs_that_wait_for_each_other_are_never_more_than_the_processors(device: Device) -> None:
    grids = 0
    for work in WORKLOADS:
        for tiling in candidates(work, device)[:-1]:
            if tiling.schedule == "grid":
                at_once = tiling.row_blocks_at_once(work, device)
                assert 0 < at_once * tiling.n_unit_blocks(work.hidden_size) * work.directions <= device.processors
                grids += 1
    assert grids


@pytest.mark.parametrize("device", [*DEVICES, INTERPRETER], ids=str)
def test_tiles_cover_all_units_and_are_powers_of_two(device: Device) -> None:
    for work in WORKLOADS:
        for tiling in candidates(work, device)[:-1]:
            assert all(n & (n - 1) == 0 for n in (tiling.units, tiling.rows, tiling.chunk, tiling.split, tiling.num_warps))
            assert tiling.chunk * tiling.n_chunks(work.hidden_size) >= work.hidden_size
            assert tiling.units * tiling.n_unit_blocks(work.hidden_size) >= work.hidden_size
            assert tiling.n_unit_blocks(work.hidden_size) == 1 or not tiling.alone
            # Triton 3.6 takes no smaller operands.
            assert min(tiling.units, tiling.rows, tiling.chunk // tiling.split) >= 16


def test_the_estimate_of_shared_memory_covers_the_weights() -> None:
    for work in WORKLOADS:
        for tiling in candidates(work, H200)[:-1]:
            weights = (
                3 * tiling.units * min(work.hidden_size, tiling.chunk * tiling.n_chunks(work.hidden_size)) * work.element_size
            )
            assert shared_memory(tiling, work) > weights


@pytest.mark.parametrize(
    ("work", "device", "reason"),
    [
        (lstm(one_step=True), H200, "a single step"),
        (lstm(projected=True), H200, "a projected layer multiplies twice"),
        (lstm(element_size=8), H200, "no float64 matrix instruction"),
        (lstm(4096), H200, "the device's 132 processors cannot hold the weights of 4096 units"),
        (lstm(129), INTERPRETER, "one program cannot hold the weights of 129 units, and here programs cannot wait"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_stepwise_alone_is_offered_with_a_reason(work: Workload, device: Device, reason: str) -> None:
    assert candidates(work, device) == [STEPWISE]
    assert reason in why_stepwise(work, device)


def test_where_tiles_are_offered_there_is_no_reason_against_them() -> None:
    for work in WORKLOADS:
        assert (why_stepwise(work, H200) is None) == (len(candidates(work, H200)) > 1), work


def test_a_small_layer_needs_no_barrier_and_a_larger_one_a_grid() -> None:
    assert plan(lstm(64), H200).schedule == "program"
    assert plan(lstm(512), H200).schedule == "grid"
    assert plan(lstm(4096), H200).schedule == "stepwise"


def test_a_tiling_says_what_it_is() -> None:
    assert str(STEPWISE) == "stepwise"
    text = str(Tiling("grid", 16, 32, 512, 8, 8))
    assert text == "grid: 16 units x 32 rows per program, products of 512 in 8 parts, 8 warps"


def request(**changes) -> Request:
    return Request("lstm", torch.device("cpu"), torch.float32, 5, 100)._replace(**changes)


def test_explain_names_the_schedules_of_both_passes_and_why_they_are_not_better(interpreter: None) -> None:
    with use_backend("triton"):
        text = str(explain(request()))
        assert "-> triton" in text
        small = triton.describe(request(hidden_size=64), batch=3)
        large = triton.describe(request(hidden_size=500), batch=3)
    assert small.startswith("forward program: 64 units") and "; backward program: 64 units" in small
    assert large.count("stepwise (one program cannot hold the weights of 500 units") == 2


def test_without_an_interpreter_or_a_gpu_the_backend_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "it computes on GPUs and the tensors are on cpu" in str(explain(request()))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET=1 runs kernels on the CPU" in str(explain(request(device=torch.device("cuda", 0))))
