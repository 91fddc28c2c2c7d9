"""Streams: what they compute, step by step, and what they keep. What they notice and refuse: test_streaming_changes.py."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import types
import weakref
from dataclasses import replace

import pytest
import torch
from cases import Case, Problem, draw
from oracle import assert_problem_within_budget, assert_within_budget, measure
from streams import module_for, streamed

import rnnkernels

CASES = [
    Case("lstm", batch=1),
    Case("gru", batch=1),
    Case("lstm", input_size=1, hidden_size=1, batch=2),
    Case("gru", input_size=64, hidden_size=64, batch=1, steps=20),
    Case("lstm", input_size=33, hidden_size=65, num_layers=3, batch=5),
    Case("gru", input_size=16, hidden_size=31, num_layers=2, batch=9),
    Case("lstm", input_size=40, hidden_size=50, proj_size=17, num_layers=2, batch=3),
    Case("lstm", input_size=9, hidden_size=200, proj_size=130, batch=1),
    Case("gru", input_size=7, hidden_size=200, batch=2),
]
CASES += [replace(case, bias=False) for case in CASES[4:7]]
# Enough multiply-adds to release the interpreter and to use the pool.
LARGE = [
    Case("lstm", input_size=70, hidden_size=700, steps=40, batch=1),  # steps enough for threads to share the last
    Case("gru", input_size=600, hidden_size=600, steps=40, batch=2),
]


def without_gradients(case: Case) -> Case:
    return replace(case, wants=())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_are_as_accurate_as_torch_nns_sequence(case, dtype, engine):
    assert_within_budget(streamed, without_gradients(replace(case, dtype=dtype)))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_steps_are_as_accurate_on_any_number_of_threads(case, n_threads, engine, threads):
    threads(n_threads)
    assert_within_budget(streamed, without_gradients(case))


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_bfloat16_weights_compute_in_float32_with_the_rounded_matrices(case, engine):
    problem = draw(without_gradients(case))
    rounded = {name: w.bfloat16().float() if w.dim() == 2 else w for name, w in problem.weights.items()}
    assert any(not torch.equal(rounded[name], w) for name, w in problem.weights.items())

    def implementation(case, input, states, weights):
        return streamed(case, input, states, problem.weights, dtype=torch.bfloat16)

    assert_problem_within_budget(implementation, measure(replace(problem, weights=rounded)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_same_steps_give_the_same_bits_whatever_the_number_of_threads(cell, threads):
    problem = draw(Case(cell, hidden_size=600, input_size=600, steps=60, batch=1))  # threads share a step after the 32nd
    results = []
    for n in (1, 2, 2):
        threads(n)
        results.append(streamed(problem.case, problem.input, problem.states, problem.weights))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- outputs ---------------------------------------------------------------------------------------------------------------


def problem_and_stream(case: Case | None = None, **options) -> tuple[Problem, rnnkernels.Stream]:
    problem = draw(case or Case("lstm", num_layers=2))
    return problem, module_for(problem).stream(problem.case.batch, **options)


def test_every_step_writes_to_the_same_tensor(engine):
    problem, stream = problem_and_stream()
    first = stream.step(problem.input[0])
    kept = first.clone()
    second = stream.step(problem.input[1])
    assert second is first and not torch.equal(second, kept)
    assert second.shape == (3, 7) and second.dtype == torch.float32 and not second.requires_grad


def test_an_output_can_be_written_elsewhere(engine):
    problem, stream = problem_and_stream()
    buffered = [stream.step(x).clone() for x in problem.input]
    stream.reset()
    sequence = torch.empty(4, 3, 7)
    own = stream.step(problem.input[0]).clone()
    stream.reset()
    for x, out in zip(problem.input, sequence, strict=True):
        assert stream.step(x, out=out) is out
    assert torch.equal(sequence, torch.stack(buffered)) and torch.equal(sequence[0], own)


def test_a_batch_of_one_may_be_given_without_its_dimension(engine):
    problem, stream = problem_and_stream(Case("gru", batch=1))
    batched = [stream.step(x).clone() for x in problem.input]
    stream.reset()
    for x, expected in zip(problem.input, batched, strict=True):
        y = stream.step(x[0])
        assert y.shape == (7,) and torch.equal(y, expected[0])
    out = torch.empty(7)
    assert stream.step(problem.input[0, 0], out=out) is out


def test_rows_may_lie_apart_or_in_one_place_and_the_input_may_be_the_output(engine):
    problem, stream = problem_and_stream(Case("lstm", input_size=7, hidden_size=7))
    batch_first = problem.input.transpose(0, 1).contiguous()
    expected = [stream.step(x).clone() for x in problem.input]
    stream.reset()
    assert not batch_first[:, 0].is_contiguous()
    assert all(torch.equal(stream.step(batch_first[:, t]), expected[t]) for t in range(4))
    row = problem.input[0, :1]
    stream.reset()
    repeated = stream.step(row.repeat(3, 1)).clone()
    stream.reset()
    assert torch.equal(stream.step(row.expand(3, -1)), repeated)
    stream.reset()
    x = problem.input[0].clone()
    assert torch.equal(stream.step(x, out=x), expected[0])


def test_dropout_is_off_in_training_mode_too(engine):
    problem = draw(Case("lstm", num_layers=2))
    module = module_for(problem, dropout=0.9).train()
    stream, plain = module.stream(3), module_for(problem).stream(3)
    assert all(torch.equal(stream.step(x), plain.step(x)) for x in problem.input)


def test_autocast_changes_nothing(engine):
    problem, stream = problem_and_stream()
    expected = stream.step(problem.input[0]).clone()
    stream.reset()
    with torch.autocast("cpu", torch.bfloat16):
        stream.refresh()
        assert torch.equal(stream.step(problem.input[0]), expected)


# --- states ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_state_that_is_set_again_continues_bit_by_bit(cell, dtype, engine):
    problem, stream = problem_and_stream(Case(cell, num_layers=2, dtype=dtype))
    stream.step(problem.input[0])
    state = stream.state
    expected = [stream.step(x).clone() for x in problem.input]
    other = module_for(problem).stream(3)
    other.state = state
    assert all(torch.equal(other.step(x), y) for x, y in zip(problem.input, expected, strict=True))


def test_states_are_shaped_as_torch_nns_and_copies():
    _, stream = problem_and_stream(Case("lstm", num_layers=2, proj_size=4))
    h, c = stream.state
    assert h.shape == (2, 3, 4) and c.shape == (2, 3, 7) and not h.any() and not c.any()
    h += 1
    assert not stream.state[0].any()
    _, stream = problem_and_stream(Case("gru", num_layers=2, dtype=torch.bfloat16))
    assert stream.state.shape == (2, 3, 7) and stream.state.dtype == stream.state_dtype == torch.float32


def test_a_state_of_the_modules_dtype_can_be_set(engine):
    problem, stream = problem_and_stream(Case("lstm", dtype=torch.bfloat16))
    stream.state = problem.states
    assert all(torch.equal(own, given.float()) for own, given in zip(stream.state, problem.states, strict=True))
    stream.state = None
    assert not any(state.any() for state in stream.state)


@pytest.mark.parametrize("rows, zeroed", [(1, [1]), (-1, [2]), ([0, 2], [0, 2]), ([], []), (None, [0, 1, 2])])
def test_reset_zeroes_the_rows_it_is_given(rows, zeroed, engine):
    problem, stream = problem_and_stream()
    stream.step(problem.input[0])
    before = stream.state
    stream.reset(rows)
    for old, new in zip(before, stream.state, strict=True):
        for row in range(3):
            assert torch.equal(new[:, row], torch.zeros_like(new[:, row]) if row in zeroed else old[:, row])
            assert old[:, row].all()


def test_reset_takes_a_mask_of_rows(engine):
    problem, stream = problem_and_stream(Case("gru"))
    stream.step(problem.input[0])
    stream.reset(torch.tensor([False, True, False]))
    assert stream.state.any(-1).tolist() == [[True, False, True]]


def test_streams_of_one_module_do_not_disturb_each_other(engine):
    problem = draw(Case("lstm", num_layers=2))
    module = module_for(problem)
    expected = [y.clone() for y in map(module.stream(3).step, problem.input)]
    first, second = module.stream(3), module.stream(3)
    for t, x in enumerate(problem.input):
        assert torch.equal(first.step(x), expected[t])
        second.step(-x)


# --- lifetime --------------------------------------------------------------------------------------------------------------


def test_a_stream_is_neither_pickled_nor_copied_and_a_module_with_streams_is():
    problem = draw(Case("gru"))
    module = module_for(problem)
    stream = module.stream(3)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a stream cannot be pickled or copied"):
            attempt(stream)
    expected = stream.step(problem.input[0])
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(twin.stream(3).step(problem.input[0]), expected)


def test_a_stream_and_its_module_are_freed(engine):
    module = rnnkernels.LSTM(3, 4)
    module.mine = None
    stream = module.stream()
    stream.step(torch.zeros(1, 3))
    object.__setattr__(module, "mine", stream)  # a cycle through the module
    references = weakref.ref(module), weakref.ref(module.weight_hh_l0)
    del module, stream
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_missing_extension_is_served_by_torch_and_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rnnkernels._C", None)
    problem, stream = problem_and_stream()
    assert stream.engine == "torch" and "rnnkernels._C is missing" in stream.reason
    assert "engine=torch: the extension module" in repr(stream)
    stream.step(problem.input[0])


def test_an_extension_from_before_there_were_streams_is_as_good_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rnnkernels._C", types.ModuleType("rnnkernels._C"))
    problem, stream = problem_and_stream()
    assert stream.engine == "torch" and "built before there were streams" in stream.reason
    stream.step(problem.input[0])


def test_a_stream_says_what_it_is(native_library):
    _, stream = problem_and_stream(Case("lstm", proj_size=4, num_layers=2), dtype=torch.bfloat16)
    assert repr(stream) == (
        "Stream(LSTM(5, 7, proj_size=4, num_layers=2), batch_size=3, float32, weights in bfloat16, engine=native)"
    )
    assert (stream.engine, stream.reason) == ("native", None)
    assert (stream.batch_size, stream.input_size, stream.hidden_size, stream.output_size, stream.num_layers) == (3, 5, 7, 4, 2)
    assert (stream.dtype, stream.weight_dtype) == (torch.float32, torch.bfloat16)
