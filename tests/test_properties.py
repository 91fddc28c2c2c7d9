"""Whatever the shapes and flags: results within the budget, and laws that hold for every recurrent layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from cases import Case, draw, evaluate, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, assert_same_mathematics, assert_within_budget

SIZES = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 100, 127, 130]))


EITHER = st.booleans()

# conftest.py loads this profile, and torch's own test modules, which other tests here import, load theirs over it.
searched = settings.get_profile("rnnkernels")


@st.composite
def cases(draw_from, dtypes=DTYPES, packed=EITHER) -> Case:
    cell = draw_from(st.sampled_from(["lstm", "gru"]))
    hidden = draw_from(SIZES)
    projected = cell == "lstm" and hidden > 1 and draw_from(st.booleans())
    lengths = None
    if draw_from(packed):
        lengths = tuple(sorted(draw_from(st.lists(st.integers(1, 9), min_size=1, max_size=9)), reverse=True))
    return Case(
        cell,
        input_size=draw_from(SIZES),
        hidden_size=hidden,
        steps=draw_from(st.integers(1, 8)),
        batch=draw_from(st.integers(1, 20)),
        num_layers=draw_from(st.integers(1, 2)),
        bidirectional=draw_from(st.booleans()),
        bias=draw_from(st.booleans()),
        proj_size=draw_from(st.integers(1, hidden - 1)) if projected else 0,
        lengths=lengths,
        dtype=draw_from(st.sampled_from(dtypes)),
    )


@searched
@given(case=cases(), seed=st.integers(0, 1000))
def test_any_case_is_as_exact_as_torch_nn(backend: str, case: Case, seed: int) -> None:
    assert_within_budget(ours, case, seed)


@searched
@given(case=cases(dtypes=[torch.float64], packed=st.just(True)))
def test_a_packed_batch_is_its_sequences_one_by_one(backend: str, case: Case) -> None:
    problem = draw(case)
    together = evaluate(ours, problem)
    sizes = case.batch_sizes.tolist()
    for b, length in enumerate(case.lengths):
        rows = torch.tensor([sum(sizes[:t]) + b for t in range(length)])
        alone = replace(
            problem,
            case=replace(case, lengths=None, steps=length, batch=1),
            input=problem.input[rows].unsqueeze(1),
            states=tuple(s[:, b : b + 1] for s in problem.states),
            grads=(problem.grads[0][rows].unsqueeze(1), *(g[:, b : b + 1] for g in problem.grads[1:])),
        )
        results = evaluate(ours, alone)
        for name in ("output", "grad of input"):
            assert_same_mathematics(together[name][rows].unsqueeze(1), results[name])
        for name in ("h_n", "grad of h_0"):
            assert_same_mathematics(together[name][:, b : b + 1], results[name])


@searched
@given(case=cases(dtypes=[torch.float64], packed=st.just(False)), cut=st.integers(1, 7))
def test_a_sequence_in_two_parts_is_the_whole(backend: str, case: Case, cut: int) -> None:
    case = replace(case, bidirectional=False, steps=max(case.steps, 2))
    cut = min(cut, case.steps - 1)
    problem = draw(case)
    whole, *finals = ours(case, problem.input, problem.states, problem.weights)
    first, *between = ours(case, problem.input[:cut], problem.states, problem.weights)
    second, *ends = ours(case, problem.input[cut:], tuple(between), problem.weights)
    assert_same_mathematics(torch.cat((first, second)), whole)
    for end, final in zip(ends, finals, strict=True):
        assert_same_mathematics(end, final)


@searched
@given(case=cases(dtypes=[torch.float64], packed=st.just(False)))
def test_the_reverse_direction_is_the_forward_one_on_the_reversed_sequence(backend: str, case: Case) -> None:
    case = replace(case, bidirectional=True, num_layers=1)
    problem = draw(case)
    both, *_ = ours(case, problem.input, problem.states, problem.weights)
    single = replace(case, bidirectional=False)
    weights = {n.removesuffix("_reverse"): w for n, w in problem.weights.items() if n.endswith("_reverse")}
    reverse, *_ = ours(single, problem.input.flip(0), tuple(s[1:] for s in problem.states), weights)
    assert_same_mathematics(both[..., case.state_size :], reverse.flip(0))


@searched
@given(case=cases(dtypes=[torch.float64]))
def test_gradients_are_linear_in_the_output_gradients(backend: str, case: Case) -> None:
    one, two = draw(case, seed=1), draw(case, seed=2)
    two = replace(one, grads=two.grads)
    both = replace(one, grads=tuple(a + 2 * b for a, b in zip(one.grads, two.grads, strict=True)))
    first, second = evaluate(ours, one), evaluate(ours, two)
    for name, value in evaluate(ours, both).items():
        if name.startswith("grad of"):
            assert_same_mathematics(value, first[name] + 2 * second[name])
