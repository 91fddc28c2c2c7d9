"""What streams notice of their modules, what they refuse, and that several threads and processes may have them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import Case, draw
from streams import module_for
from subprocesses import output_of
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnkernels

# --- changed weights -------------------------------------------------------------------------------------------------------


def optimizer_step(module):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.randn(2, 3, 5))[0].sum().backward()
    optimizer.step()


def sgd_step_of_the_last_bias(module):
    list(module.parameters())[-1].grad = torch.ones(28 if module.mode == "LSTM" else 21)
    torch.optim.SGD(module.parameters(), lr=0.1, foreach=False).step()


def load_state_dict(module):
    module.load_state_dict({name: 0.5 * value for name, value in module.state_dict().items()})


def load_state_dict_by_assignment(module):
    module.load_state_dict({name: 0.5 * value for name, value in module.state_dict().items()}, assign=True)


def write_without_gradients(module):
    with torch.no_grad():
        module.weight_hh_l1[3, 2] += 1


def new_parameter(module):
    module.weight_ih_l1 = nn.Parameter(module.weight_ih_l1.detach() * 2)


def new_data(module):
    module.bias_hh_l0.data = module.bias_hh_l0.data + 1


def parametrize_it(module):
    parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0 *= 2


def reset_parameters(module):
    module.reset_parameters()


CHANGES = [
    optimizer_step,
    sgd_step_of_the_last_bias,
    load_state_dict,
    load_state_dict_by_assignment,
    write_without_gradients,
    new_parameter,
    new_data,
    parametrize_it,
    reset_parameters,
]


def two_layers(cell: str) -> rnnkernels.LSTM | rnnkernels.GRU:
    return module_for(draw(Case(cell, num_layers=2)))


def step_of_a_new_stream(module, state, x):
    fresh = module.stream(3)
    fresh.state = state
    return fresh.step(x)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_step_after_a_change_uses_the_new_weights_and_the_old_state(cell, change, engine):
    module, x = two_layers(cell), torch.randn(3, 5)
    stream, untouched = module.stream(3), two_layers(cell).stream(3)
    for each in (stream, untouched):
        each.step(x)
    change(module)
    state = stream.state
    expected = step_of_a_new_stream(module, state, x)
    assert torch.equal(stream.step(x), expected)
    assert not torch.equal(untouched.step(x), expected)


@pytest.mark.parametrize("change", [write_without_gradients, new_data], ids=lambda change: change.__name__)
def test_bfloat16_weights_are_packed_again_too(change, engine):
    module, x = two_layers("lstm"), torch.randn(3, 5)
    stream = module.stream(3, dtype=torch.bfloat16)
    change(module)
    assert torch.equal(stream.step(x), module.stream(3, dtype=torch.bfloat16).step(x))


def test_parametrized_weights_follow_what_they_are_computed_from(engine):
    module, x = two_layers("gru"), torch.randn(3, 5)
    parametrizations.weight_norm(module, "weight_hh_l0")
    stream = module.stream(3)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original1 += 0.1
    assert torch.equal(stream.step(x), module.stream(3).step(x))
    state = stream.state
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    new = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    module.weight_hh_l0 = new
    assert torch.equal(stream.step(x), step_of_a_new_stream(module, state, x))


def test_a_write_torch_does_not_count_needs_a_refresh(engine):
    module, x = two_layers("lstm"), torch.randn(3, 5)
    stream = module.stream(3)
    before = stream.step(x).clone()
    module.weight_ih_l0.data.mul_(2)
    stream.reset()
    assert torch.equal(stream.step(x), before)
    stream.refresh()
    stream.reset()
    after = stream.step(x)
    assert not torch.equal(after, before) and torch.equal(after, module.stream(3).step(x))


def test_weights_made_in_inference_mode_need_a_refresh(engine):
    with torch.inference_mode():
        module, x = two_layers("lstm"), torch.randn(3, 5)
        stream = module.stream(3)
        stream.step(x)
        module.bias_hh_l0.add_(1)
        stream.refresh()
        stream.reset()
        assert torch.equal(stream.step(x), module.stream(3).step(x))


def test_a_module_that_has_another_dtype_now_is_refused(engine):
    module = two_layers("lstm")
    stream = module.stream(3)
    module.double()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"the module is torch.float64 now and this stream torch.float32"):
            stream.step(torch.randn(3, 5))
    module.float()
    assert torch.equal(stream.step(torch.ones(3, 5)), module.stream(3).step(torch.ones(3, 5)))


def test_a_weight_of_another_shape_is_refused(engine):
    module = two_layers("gru")
    stream = module.stream(3)
    module.weight_hh_l1 = nn.Parameter(torch.zeros(21, 6))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"weight_hh_l1 must have shape \(21, 7\), got \[21, 6\]"):
            stream.step(torch.zeros(3, 5))


def test_weights_that_could_not_be_packed_are_packed_by_the_next_step(engine, monkeypatch):
    module, x = two_layers("gru"), torch.randn(3, 5)
    stream = module.stream(3)
    write_without_gradients(module)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", lambda self: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            stream.step(x)
    assert torch.equal(stream.step(x), module.stream(3).step(x))


# --- refusals --------------------------------------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


BAD_INPUTS = {
    "an array": (lambda: torch.zeros(3, 5).numpy(), TypeError, "x must be a Tensor, got ndarray"),
    "None": (lambda: None, TypeError, "x must be a Tensor, got NoneType"),
    "a subclass": (lambda: torch.zeros(3, 5).as_subclass(Subclass), TypeError, "x must be a plain dense tensor, got Subclass"),
    "sparse": (lambda: torch.zeros(3, 5).to_sparse(), TypeError, "x must be a plain dense tensor"),
    "another device": (lambda: torch.zeros(3, 5, device="meta"), RuntimeError, "x must be on the CPU"),
    "another dtype": (lambda: torch.zeros(3, 5).double(), ValueError, "x must have the module's dtype torch.float32"),
    "integers": (lambda: torch.zeros(3, 5).long(), ValueError, "x must have the module's dtype"),
    "too many features": (lambda: torch.zeros(3, 6), RuntimeError, r"x must have shape \(3, 5\), got \[3, 6\]"),
    "too many rows": (lambda: torch.zeros(4, 5), RuntimeError, r"x must have shape \(3, 5\), got \[4, 5\]"),
    "no rows": (lambda: torch.zeros(0, 5), RuntimeError, "x must have shape"),
    "one row": (lambda: torch.zeros(5), RuntimeError, r"x must have shape \(3, 5\), got \[5\]"),
    "a number": (lambda: torch.tensor(1.0), RuntimeError, r"x must have shape \(3, 5\), got \[\]"),
    "a sequence": (lambda: torch.zeros(1, 3, 5), RuntimeError, "x must have shape"),
    "many dimensions": (lambda: torch.zeros(1, 1, 3, 5), RuntimeError, "x must have shape"),
    "scattered features": (lambda: torch.zeros(5, 3).t(), RuntimeError, r"features of x must lie side by side: stride\(-1\)"),
    "negated": (lambda: torch._neg_view(torch.zeros(3, 5)), RuntimeError, "memory holds the negated values"),
    "without memory": (lambda: torch._efficientzerotensor((3, 5)), RuntimeError, "have no memory"),
    "wants a gradient": (lambda: torch.zeros(3, 5, requires_grad=True), RuntimeError, "requires a gradient"),
}


@pytest.mark.parametrize("bad", BAD_INPUTS)
def test_an_input_that_does_not_fit_is_refused_and_changes_nothing(bad, engine):
    make, error, message = BAD_INPUTS[bad]
    x = torch.randn(3, 5)
    stream = two_layers("lstm").stream(3)
    stream.step(x)
    before = stream.state
    with pytest.raises(error, match=message):
        stream.step(make())
    assert all(torch.equal(a, b) for a, b in zip(stream.state, before, strict=True))
    stream.step(x)


BAD_OUTPUTS = {
    "an array": (lambda: torch.zeros(3, 7).numpy(), TypeError, "out must be a Tensor"),
    "another dtype": (lambda: torch.zeros(3, 7).half(), ValueError, "out must have the module's dtype"),
    "another shape": (lambda: torch.zeros(3, 5), RuntimeError, r"out must have shape \(3, 7\), got \[3, 5\]"),
    "strided": (lambda: torch.zeros(3, 8)[:, :7], RuntimeError, "out must be contiguous"),
    "expanded": (lambda: torch.zeros(1, 7).expand(3, 7), RuntimeError, "out must be contiguous"),
    "wants a gradient": (lambda: torch.zeros(3, 7, requires_grad=True), RuntimeError, "out requires a gradient"),
}


@pytest.mark.parametrize("bad", BAD_OUTPUTS)
def test_an_output_that_does_not_fit_is_refused_and_changes_nothing(bad, engine):
    make, error, message = BAD_OUTPUTS[bad]
    stream = two_layers("gru").stream(3)
    with pytest.raises(error, match=message):
        stream.step(torch.randn(3, 5), out=make())
    assert not stream.state.any()


def test_a_buffer_that_lost_its_memory_is_refused(engine):
    stream, x = two_layers("gru").stream(3), torch.randn(3, 5)
    buffer = stream.step(x)
    buffer.resize_(1, 1)
    with pytest.raises(RuntimeError, match=r"out must have shape \(3, 7\), got \[1, 1\]"):
        stream.step(x)


def test_gradients_may_be_off_when_an_input_wants_one(engine):
    stream, x = two_layers("lstm").stream(3), torch.randn(3, 5)
    expected = stream.step(x).clone()
    stream.reset()
    with torch.no_grad():
        assert torch.equal(stream.step(x.clone().requires_grad_()), expected)


def test_transforms_are_refused(engine):
    stream = two_layers("lstm").stream(3)
    with pytest.raises(RuntimeError, match=r"torch.func transforms"):
        torch.func.vmap(stream.step)(torch.randn(2, 3, 5))
    with pytest.raises(RuntimeError, match=r"torch.func transforms|requires a gradient"):
        torch.func.grad(lambda x: stream.step(x).sum())(torch.randn(3, 5))


def test_modules_that_cannot_be_streamed_are_refused():
    with pytest.raises(ValueError, match="a bidirectional module cannot be streamed"):
        rnnkernels.LSTM(3, 4, bidirectional=True).stream()
    with pytest.raises(RuntimeError, match="a stream computes on the CPU, and weight_ih_l0 is on meta"):
        rnnkernels.GRU(3, 4, device="meta").stream()
    with pytest.raises(ValueError, match=r"can be kept in torch.float32 or torch.bfloat16, not torch.float16"):
        rnnkernels.GRU(3, 4).stream(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"can be kept in torch.float64, not torch.bfloat16"):
        rnnkernels.GRU(3, 4, dtype=torch.float64).stream(dtype=torch.bfloat16)
    of_a_subclass = rnnkernels.GRU(3, 4)
    of_a_subclass.weight_hh_l0 = nn.Parameter(torch.zeros(12, 4).as_subclass(Subclass))
    with pytest.raises(TypeError, match="a stream needs plain tensors, and weight_hh_l0 is Subclass"):
        of_a_subclass.stream()
    pruned = rnnkernels.GRU(3, 4)
    prune.random_unstructured(pruned, "weight_hh_l0", 0.5)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 is no parameter: a hook"):
        pruned.stream()
    prune.remove(pruned, "weight_hh_l0")
    pruned.stream()


@pytest.mark.parametrize(
    "size, error", [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError)]
)
def test_batch_sizes_without_sense_are_refused(size, error):
    with pytest.raises(error, match="batch_size must be"):
        rnnkernels.GRU(3, 4).stream(size)


def test_states_that_do_not_fit_are_refused_and_nothing_is_set(engine):
    stream = two_layers("lstm").stream(3)
    h = torch.ones(2, 3, 7)
    for bad, error, message in [
        ((h, h[:1]), RuntimeError, r"Expected c size \(2, 3, 7\), got \[1, 3, 7\]"),
        ((h,), RuntimeError, r"an LSTM's state is \(h, c\), got 1 tensors"),
        ((h, h.double()), ValueError, "c must be torch.float32"),
        ((h, None), TypeError, "c must be a Tensor, got NoneType"),
        ((h, h.to("meta")), RuntimeError, "c must be on the CPU"),
    ]:
        with pytest.raises(error, match=message):
            stream.state = bad
    assert not any(state.any() for state in stream.state)


@pytest.mark.parametrize(
    "rows, error", [(3, IndexError), ([0, -4], IndexError), ([1.0], TypeError), (torch.tensor([True]), IndexError)]
)
def test_rows_that_are_not_there_are_refused(rows, error, engine):
    with pytest.raises(error):
        two_layers("lstm").stream(3).reset(rows)


# --- threads and processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_size", [8, 600])
def test_two_threads_on_one_stream_take_turns_or_are_refused(hidden_size, native_library):
    """Steps of 600 units release the interpreter, so that they can meet."""
    module = rnnkernels.GRU(hidden_size, hidden_size)
    stream, x = module.stream(), torch.randn(1, hidden_size)
    start, done, refused = threading.Barrier(2), [], []

    def work():
        torch.set_num_threads(1)
        start.wait()
        for _ in range(200):
            try:
                stream.step(x, out=torch.empty(1, hidden_size))
                done.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work) for _ in range(2)]:
            future.result()
    assert len(done) + len(refused) == 400 and set(refused) <= {
        "this stream is in use by another thread: give each thread a stream of its own"
    }
    alone = module.stream()
    for _ in done:
        alone.step(x)
    assert torch.equal(stream.state, alone.state)


def test_streams_of_several_threads_run_side_by_side(engine, threads):
    threads(1)
    module = rnnkernels.LSTM(40, 300)
    inputs = torch.randn(8, 1, 40)

    def run(_: int) -> torch.Tensor:
        stream = module.stream()
        return torch.stack([stream.step(x).clone() for x in inputs])

    expected = run(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(result, expected) for result in pool.map(run, range(8)))


def test_a_forked_process_goes_on_with_a_stream(native_library):
    code = """
import os, torch, rnnkernels
torch.set_num_threads(2)
torch.manual_seed(0)
stream, x = rnnkernels.LSTM(600, 600).stream(), torch.randn(1, 600)
for _ in range(40):  # the last of them shared by two threads
    stream.step(x)
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)  # as workers of torch.utils.data do
    stream.step(x)
    os.write(write, stream.step(x).numpy().tobytes())
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stream.step(x)
assert os.read(read, 2400) == stream.step(x).numpy().tobytes()
print("done")
"""
    assert output_of(code, timeout=60).strip() == "done"
