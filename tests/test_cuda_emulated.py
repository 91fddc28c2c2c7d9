"""The CUDA operators whole, on the emulated machine: from functional.lstm() through the binding and its products to the kernels,
forward and backward, against the float64 oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import emulated_cuda
import pytest
import torch
from cases import Case, draw, evaluate, ours, torch_nn
from oracle import assert_within_budget, error
from torch.profiler import ProfilerActivity, profile

from rnnkernels import functional
from rnnkernels.backends import native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LENGTHS = (6, 6, 4, 3, 1)
LAYERS = [
    Case("lstm", hidden_size=9, steps=5),
    Case("gru", hidden_size=9, steps=5),
    Case("lstm", bidirectional=True, num_layers=2, bias=False),
    Case("gru", bidirectional=True, num_layers=2, bias=False),
    Case("lstm", bidirectional=True, lengths=LENGTHS),
    Case("gru", bidirectional=True, lengths=LENGTHS),
    Case("lstm", proj_size=3, bidirectional=True),
    Case("lstm", proj_size=4, bidirectional=True, lengths=LENGTHS),
]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with emulated_cuda.backend(monkeypatch):
        yield


@pytest.fixture
def rnn_switch() -> Iterator:
    """torch's switch for float32 in recurrent layers, put back after the test."""
    switch = torch.backends.cudnn.rnn
    before = switch.fp32_precision
    yield switch
    switch.fp32_precision = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_stepwise_layers_are_as_exact_as_torchs(case: Case, dtype: torch.dtype, poisoned_memory: None) -> None:
    with native.forced("stepwise"):
        assert_within_budget(ours, with_dtype(case, dtype))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_the_same_call_gives_the_same_bits_in_any_order_of_threads(case: Case) -> None:
    problem = draw(case)
    with native.forced("stepwise"):
        first, second = evaluate(ours, problem), evaluate(ours, problem)  # every launch has a seed of its own
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(("schedule", "tile", "ctas"), [("one CTA", "narrow", 1), ("cluster", "narrow", 2), ("grid", "even", 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_persistent_layers_are_as_exact_as_their_products(
    cell: str, dtype: torch.dtype, schedule: str, tile: str, ctas: int, poisoned_memory: None, rnn_switch
) -> None:
    rnn_switch.fp32_precision = "tf32"
    case = Case(cell, hidden_size=20, bidirectional=True, lengths=LENGTHS, dtype=dtype)
    with native.forced(schedule, tile=tile, ctas=ctas):
        if dtype == torch.bfloat16:
            assert_within_budget(ours, case)
            return
        results = evaluate(ours, draw(case))
    exact = evaluate(torch_nn, draw(case).to(torch.float64))
    for name, value in results.items():  # tf32 has float16's digits, and every sum many of its roundings
        assert error(value, exact[name]) < 4 * torch.finfo(torch.float16).eps, name


def test_float32_products_follow_the_switch_for_recurrent_layers(rnn_switch) -> None:
    problem = draw(Case("lstm", hidden_size=20))
    exact = evaluate(torch_nn, problem.to(torch.float64))
    errors = {}
    with native.forced("one CTA", tile="narrow"):
        for precision in ("tf32", "ieee"):
            rnn_switch.fp32_precision = precision
            errors[precision] = error(evaluate(ours, problem)["output"], exact["output"])
    assert errors["ieee"] < 8 * torch.finfo(torch.float32).eps < errors["tf32"]


def test_every_pass_takes_the_schedule_asked_for_or_says_why_not() -> None:
    projected = draw(Case("lstm", proj_size=3))
    with native.forced("one CTA"), pytest.raises(RuntimeError, match="persistent schedules have no projected state"):
        evaluate(ours, projected)
    with native.forced("cluster", ctas=64), pytest.raises(RuntimeError, match="clusters of 64 CTAs are not available"):
        evaluate(ours, draw(Case("gru")))
    with native.forced("two CTAs"), pytest.raises(ValueError, match="there is no CUDA schedule two CTAs"):
        evaluate(ours, draw(Case("gru")))


def test_backward_leaves_what_forward_saved_as_it_was() -> None:
    for case in (Case("lstm", proj_size=3), Case("gru", bidirectional=True)):
        problem = draw(case)
        weights = {name: w.clone().requires_grad_() for name, w in problem.weights.items()}
        with native.forced("stepwise"):
            output, *_ = ours(case, problem.input, problem.states, weights)
            first, second = (torch.autograd.grad(output, [*weights.values()], problem.grads[0], retain_graph=True) for _ in "12")
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_gradient_that_is_a_view_counts_like_its_copy(cell: str) -> None:
    case = Case(cell, bidirectional=True, steps=4, batch=3)
    problem = draw(case)
    wide = torch.randn(3, 4, 2 * problem.grads[0].size(-1))
    view = wide.transpose(0, 1)[..., : problem.grads[0].size(-1)]
    assert not view.is_contiguous()
    x = problem.input.clone().requires_grad_()
    with native.forced("stepwise"):
        output, *_ = ours(case, x, problem.states, problem.weights)
        grads = [torch.autograd.grad(output, x, g, retain_graph=True)[0] for g in (view, view.contiguous())]
    assert torch.equal(*grads)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_cell_is_a_layer_of_one_step(cell: str) -> None:
    problem = draw(Case(cell, steps=1))
    weights = list(problem.weights.values())
    states = tuple(s[0] for s in problem.states)
    with native.forced("stepwise"):
        output, *_ = ours(problem.case, problem.input, problem.states, problem.weights)
        if cell == "lstm":
            h, _ = functional.lstm_cell(problem.input[0], states, *weights)
        else:
            h = functional.gru_cell(problem.input[0], states[0], *weights)
    assert torch.equal(h, output[0])


@pytest.mark.parametrize("case", [LAYERS[0], LAYERS[3], LAYERS[6]], ids=str)
def test_a_further_step_calls_products_and_nothing_else_of_torchs(case: Case) -> None:
    """Views and allocations per step would cost more than a small layer's step, and could not be captured into a graph."""

    def calls(steps: int) -> Counter:
        problem = draw(replace(case, steps=steps, num_layers=1))
        with native.forced("stepwise"):
            evaluate(ours, problem)  # what is done once only is done
            with profile(activities=[ProfilerActivity.CPU]) as recorded:
                evaluate(ours, problem)
        return Counter(event.name for event in recorded.events())

    few, many = calls(4), calls(9)
    products = 2 if case.proj_size else 1
    name = "aten::bmm" if case.bidirectional else "aten::mm"
    further = many - few
    further.pop("aten::resolve_conj")  # of products on the CPU; returns what it is given
    assert further == Counter({name: 2 * 5 * products})


def test_a_wrong_argument_is_named() -> None:
    case = Case("lstm", proj_size=3)
    problem = draw(case)
    weights = list(problem.weights.values())
    arguments = (problem.input, None, *problem.states, weights, True, True, False, False)
    torch.ops.rnnkernels.emulated_lstm_forward(*arguments)
    weights[-1] = weights[-1].t().contiguous()
    with pytest.raises(RuntimeError, match=r"w_hr must have shape \(3, 7\), got \(7, 3\)"):
        torch.ops.rnnkernels.emulated_lstm_forward(*arguments)


def with_dtype(case: Case, dtype: torch.dtype) -> Case:
    return replace(case, dtype=dtype)
