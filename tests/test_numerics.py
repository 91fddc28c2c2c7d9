"""Every backend computes every output and every gradient as exactly as torch.nn does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from cases import Case, draw, evaluate, ours, torch_nn
from marks import every_backend
from oracle import DTYPES, assert_problem_within_budget, assert_within_budget, measure

from rnnkernels import functional

CELLS = ("lstm", "gru")


def _both(**options) -> list[Case]:
    return [Case(cell, **options) for cell in CELLS]


STRUCTURES = [
    *_both(),
    *_both(bias=False),
    *_both(bidirectional=True),
    *_both(num_layers=2),
    *_both(num_layers=3, bidirectional=True),
    *_both(num_layers=2, bidirectional=True, bias=False),
    Case("lstm", proj_size=3),
    Case("lstm", proj_size=1, bias=False),
    Case("lstm", proj_size=6, num_layers=2, bidirectional=True),
]

PACKED = [
    *_both(lengths=(6, 4, 4, 1)),
    *_both(lengths=(5, 5, 5)),
    *_both(lengths=(1, 1, 1, 1)),
    *_both(lengths=(9,)),
    *_both(lengths=(12, 1)),
    *_both(lengths=(7, 6, 5, 4, 3, 2, 1), bidirectional=True),
    *_both(lengths=(6, 3, 3, 1), num_layers=3, bidirectional=True),
    *_both(lengths=(6, 4, 1), bias=False, bidirectional=True),
    Case("lstm", lengths=(5, 3, 1), proj_size=3, num_layers=2, bidirectional=True),
]

# Every size is 1 somewhere, and every one is on either side of a multiple of the widths that kernels use.
SIZES = [
    *_both(input_size=1, hidden_size=1, steps=1, batch=1),
    *_both(input_size=1, hidden_size=1, steps=7, batch=33),
    *_both(steps=1, batch=5),
    *_both(steps=9, batch=1),
    *_both(input_size=3, hidden_size=17, steps=6, batch=2),
    *_both(input_size=17, hidden_size=3, steps=5, batch=17),
    *_both(input_size=100, hidden_size=15, steps=3, batch=6),
    *_both(input_size=16, hidden_size=16, steps=4, batch=16),
    *_both(input_size=31, hidden_size=33, steps=5, batch=7),
    *_both(input_size=65, hidden_size=63, steps=4, batch=12),
    *_both(input_size=64, hidden_size=128, steps=3, batch=13, bidirectional=True),
    *_both(input_size=129, hidden_size=100, steps=12, batch=65),
    *_both(input_size=7, hidden_size=257, steps=3, batch=3),
    *_both(input_size=300, hidden_size=5, steps=40, batch=4),
    Case("lstm", hidden_size=65, proj_size=33, batch=9),
    Case("lstm", hidden_size=33, proj_size=17, batch=5, bidirectional=True, num_layers=2),
]

LARGE = [
    *_both(input_size=96, hidden_size=224, steps=30, batch=48),
    *_both(input_size=512, hidden_size=320, steps=8, batch=3, bidirectional=True),
    *_both(input_size=40, hidden_size=72, lengths=tuple(sorted((1 + 37 * i % 90 for i in range(50)), reverse=True))),
]


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", STRUCTURES, ids=str)
def test_every_structure_is_as_exact_as_torch_nn(backend: str, case: Case, dtype: torch.dtype) -> None:
    assert_within_budget(ours, replace(case, dtype=dtype))


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PACKED, ids=str)
def test_packed_sequences_are_as_exact_as_torch_nn(backend: str, case: Case, dtype: torch.dtype) -> None:
    assert_within_budget(ours, replace(case, dtype=dtype))


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_odd_sizes_are_as_exact_as_torch_nn(backend: str, case: Case, dtype: torch.dtype) -> None:
    assert_within_budget(ours, replace(case, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_sizes_are_as_exact_as_torch_nn(backend: str, case: Case, dtype: torch.dtype) -> None:
    assert_within_budget(ours, replace(case, dtype=dtype))


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("case", [*SIZES[-8:], *PACKED[-4:]], ids=str)
def test_every_thread_count_is_as_exact_as_torch_nn(backend: str, case: Case, n_threads: int, threads) -> None:
    threads(n_threads)
    assert_within_budget(ours, case)


@pytest.mark.backends("aten")
@pytest.mark.parametrize("case", [*STRUCTURES, *PACKED], ids=str)
def test_backend_aten_is_torch_nn(backend: str, case: Case) -> None:
    problem = draw(case)
    expected = evaluate(torch_nn, problem)
    for name, value in evaluate(ours, problem).items():
        assert torch.equal(value, expected[name]), name


WANTS = [w for n in range(1, 3) for w in itertools.combinations(("input", "states", "weights"), n)]


@every_backend
@pytest.mark.parametrize("wants", WANTS, ids="+".join)
@pytest.mark.parametrize(
    "case",
    [*_both(), Case("lstm", lengths=(3, 2, 1), bidirectional=True, proj_size=2), Case("gru", num_layers=2)],
    ids=str,
)
def test_a_subset_of_gradients_has_the_bits_of_the_whole(backend: str, case: Case, wants: tuple[str, ...]) -> None:
    """Asking for less must not change what is computed; that the whole is right, the tests above show."""
    problem = draw(case)
    whole = evaluate(ours, problem)
    subset = evaluate(ours, replace(problem, case=replace(case, wants=wants)))
    assert any(name.startswith("grad of") for name in subset)
    for name, value in subset.items():
        assert torch.equal(value, whole[name]), name


@every_backend
@pytest.mark.parametrize("name", ["output", "h_n", "c_n"])
@pytest.mark.parametrize(
    "case",
    [
        *_both(),
        *_both(lengths=(4, 2, 1), bidirectional=True, num_layers=2),
        Case("lstm", proj_size=2, bidirectional=True),
    ],
    ids=str,
)
def test_a_single_used_output_gives_torch_nns_gradients(backend: str, case: Case, name: str) -> None:
    if case.cell == "gru" and name == "c_n":
        pytest.skip("a GRU has no cell state")
    problem = draw(case)
    used = ("output", "h_n", "c_n").index(name)
    problem = replace(problem, grads=tuple(g if i == used else None for i, g in enumerate(problem.grads)))
    assert_problem_within_budget(ours, measure(problem))


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("case", _both(input_size=2, hidden_size=3, steps=66_000, batch=1), ids=str)
def test_more_steps_than_cudnn_can_take_are_as_exact_as_torch_nn(backend: str, case: Case) -> None:
    assert_problem_within_budget(ours, measure(draw(case), runs=1))  # torch.nn needs seconds for each run


@pytest.mark.parametrize("case", _both(input_size=2, hidden_size=3, steps=1_000, batch=1), ids=str)
def test_a_thousand_steps_are_as_exact_as_torch_nn(backend: str, case: Case) -> None:
    assert_within_budget(ours, case)


@every_backend
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_awkward_strides_change_no_bit(backend: str, cell: str, batch_first: bool) -> None:
    """Sliced, expanded and transposed input, states and output gradients mean what their contiguous copies mean."""
    case = Case(cell, input_size=5, hidden_size=7, steps=6, batch=4)
    weights = list(draw(case).weights.values())
    wide = torch.randn(12, 4, 10)
    x = wide[::2, :, ::2] if not batch_first else wide[::2, :, ::2].transpose(0, 1)
    h = torch.randn(7, 4, 1).permute(2, 1, 0)
    c = torch.randn(1, 1, 7).expand(1, 4, 7)
    d_output = torch.randn(1, 1, 7).expand(*x.shape[:2], 7)

    def run(*operands: torch.Tensor) -> list[torch.Tensor]:
        x, h, c = (t.detach().requires_grad_() for t in operands[:3])
        if cell == "lstm":
            output, _ = functional.lstm(x, (h, c), weights, batch_first=batch_first)
        else:
            output, _ = functional.gru(x, h, weights, batch_first=batch_first)
        grads = torch.autograd.grad(output, (x, h, c)[: 3 if cell == "lstm" else 2], operands[3])
        return [output.detach(), *grads]

    contiguous = run(*(t.contiguous() for t in (x, h, c, d_output)))
    for got, expected in zip(run(x, h, c, d_output), contiguous, strict=True):
        assert torch.equal(got, expected)


@every_backend
@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch_gives_empty_results_and_zero_weight_gradients(backend: str, cell: str) -> None:
    results = evaluate(ours, draw(Case(cell, batch=0, bidirectional=True, num_layers=2)))
    assert results["output"].shape == (4, 0, 14)
    assert results["h_n"].shape == (4, 0, 7)
    for name, value in results.items():
        if "_l" in name:
            assert not value.any(), name
