"""Calls that torch.nn refuses are refused: where its words are its own, in the same words, otherwise with the same type.

Where torch.nn's message is an accident of what it happens to call (a matrix product, oneDNN), or where it computes something all
the same, the table says what this package does instead.
"""

import re

import pytest
import torch
from pairs import CELLS, LAYERS, outcome, zeros
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnkernels

each_layer = pytest.mark.parametrize("name", LAYERS)
each_cell = pytest.mark.parametrize("name", CELLS)


def both(name: str, call, *args, **kwargs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How ``call(module, name)`` ends with torch.nn's module and with ours."""
    ends = []
    for package in (nn, rnnkernels):
        torch.manual_seed(0)
        module = getattr(package, name)(*(args or (3, 4)), **kwargs)
        ends.append(outcome(lambda module=module: call(module, name)))
    return ends[0], ends[1]


def batch(*shape: int, **kwargs) -> torch.Tensor:
    return torch.zeros(shape or (5, 2, 3), **kwargs)


def packed(*batch_sizes: int, rows: int | None = None, size: int = 3, **kwargs) -> PackedSequence:
    return PackedSequence(torch.zeros(sum(batch_sizes) if rows is None else rows, size, **kwargs), torch.tensor(batch_sizes))


SAME_WORDS = {
    "one dimension": lambda m, name: m(batch(3)),
    "four dimensions": lambda m, name: m(batch(2, 2, 2, 3)),
    "wrong input size": lambda m, name: m(batch(5, 2, 7)),
    "wrong input size, unbatched": lambda m, name: m(batch(5, 7)),
    "integer input": lambda m, name: m(batch(dtype=torch.int64)),
    "boolean input": lambda m, name: m(batch(dtype=torch.bool)),
    "complex input": lambda m, name: m(batch(dtype=torch.complex64)),
    "double input": lambda m, name: m(batch(dtype=torch.float64)),
    "half input": lambda m, name: m(batch(dtype=torch.float16)),
    "another batch in the states": lambda m, name: m(batch(), zeros(name, 1, 3, 4)),
    "too many layers in the states": lambda m, name: m(batch(), zeros(name, 2, 2, 4)),
    "wrong hidden size in the states": lambda m, name: m(batch(), zeros(name, 1, 2, 5)),
    "unbatched states with a batch": lambda m, name: m(batch(), zeros(name, 1, 4)),
    "batched states with no batch": lambda m, name: m(batch(5, 3), zeros(name, 1, 1, 4)),
    "wrong hidden size, unbatched": lambda m, name: m(batch(5, 3), zeros(name, 1, 5)),
    "no steps": lambda m, name: m(batch(0, 2, 3)),
    "no steps, unbatched": lambda m, name: m(batch(0, 3)),
    "no steps, no batch": lambda m, name: m(batch(0, 0, 3)),
    "input elsewhere": lambda m, name: m(batch(device="meta")),
    "states elsewhere": lambda m, name: m(batch(), zeros(name, 1, 2, 4, device="meta")),
    "weights elsewhere": lambda m, name: m.to("meta")(batch()),
    "no tensor": lambda m, name: m([1, 2]),
    "None": lambda m, name: m(None),
}


@each_layer
@pytest.mark.parametrize("case", SAME_WORDS)
def test_a_layer_refuses_in_torch_nns_words(name, case, backend):
    expected, raised = both(name, SAME_WORDS[case])
    assert expected != ("no error",)
    assert raised == expected


@each_layer
def test_batch_first_counts_batch_and_steps_the_other_way(name, backend):
    for call in (
        lambda m, name: m(batch(2, 5, 3), zeros(name, 1, 5, 4)),
        lambda m, name: m(batch(2, 0, 3)),
        lambda m, name: m(batch(2, 5, 7)),
    ):
        expected, raised = both(name, call, 3, 4, batch_first=True)
        assert raised == expected != ("no error",)


@pytest.mark.parametrize(
    "hx",
    [
        (batch(1, 2, 4), batch(1, 2, 5)),
        (batch(1, 2, 5), batch(1, 2, 4)),
        (batch(1, 2, 4), batch(1, 4)),
        batch(1, 2, 4),
        (batch(1, 2, 4),),
        (batch(1, 2, 4),) * 3,
        (batch(1, 2, 4), None),
        (),
    ],
    ids=["c of another size", "h of another size", "c unbatched", "one tensor", "h alone", "three", "no c", "nothing"],
)
def test_an_lstm_refuses_states_that_are_no_pair_in_torch_nns_words(hx, backend):
    expected, raised = both("LSTM", lambda m, _: m(batch(), hx))
    assert raised == expected != ("no error",)


def test_a_projected_lstm_wants_h_of_the_projections_size(backend):
    for hx in ((batch(1, 2, 4), batch(1, 2, 4)), (batch(1, 2, 2), batch(1, 2, 2))):
        expected, raised = both("LSTM", lambda m, _, hx=hx: m(batch(), hx), 3, 4, proj_size=2)
        assert raised == expected != ("no error",)


def test_a_gru_refuses_a_pair_of_states_in_torch_nns_words(backend):
    expected, raised = both("GRU", lambda m, _: m(batch(), (batch(1, 2, 4), batch(1, 2, 4))))
    assert raised == expected != ("no error",)


# --- packed sequences: nn.GRU checks them and nn.LSTM does not; both of ours do, in nn.GRU's words ------------------------

PACKED = {
    "wrong input size": lambda m, name: m(packed(3, 2, size=7)),
    "integer input": lambda m, name: m(packed(3, 2, dtype=torch.int64)),
    "double input": lambda m, name: m(packed(3, 2, dtype=torch.float64)),
    "padded data": lambda m, name: m(PackedSequence(batch(5, 2, 3), torch.tensor([3, 2]))),
    "another batch in the states": lambda m, name: m(packed(3, 2), zeros(name, 1, 2, 4)),
    "wrong hidden size in the states": lambda m, name: m(packed(3, 2), zeros(name, 1, 3, 5)),
    "unbatched states": lambda m, name: m(packed(3, 2), zeros(name, 1, 4)),
    "too many layers in the states": lambda m, name: m(packed(3, 2), zeros(name, 2, 3, 4)),
    "sorted, too few states": lambda m, name: m(pack_sequence([batch(2, 3), batch(4, 3)], False), zeros(name, 1, 1, 4)),
    "sorted, unbatched states": lambda m, name: m(pack_sequence([batch(2, 3), batch(4, 3)], False), zeros(name, 4)),
}


@each_layer
@pytest.mark.parametrize("case", PACKED)
def test_an_unfitting_packed_sequence_is_refused_as_nn_gru_does(name, case, backend):
    (*_, expected), _ = both("GRU", PACKED[case])
    nn_lstm, (*_, raised) = both(name, PACKED[case])
    assert nn_lstm != ("no error",)
    if name == "LSTM":
        expected = expected.replace("Expected hidden size", "Expected hidden[0] size")
    assert raised == expected


@each_layer
@pytest.mark.parametrize(
    "sequence",
    [
        packed(3, 1, rows=5),
        packed(3, 3, rows=5),
        packed(2, 3),
        packed(3, -1),
        packed(1, 2, 1),
        PackedSequence(torch.zeros(5, 3), torch.tensor([3, 2], dtype=torch.int32)),
        PackedSequence(torch.zeros(5, 3), torch.tensor([[3, 2]])),
        PackedSequence(torch.zeros(0, 3), torch.tensor([], dtype=torch.int64)),
    ],
    ids=["rows left", "rows missing", "growing", "negative", "growing, then not", "int32", "two-dimensional", "no steps"],
)
def test_malformed_batch_sizes_are_refused(name, sequence, backend):
    module = getattr(rnnkernels, name)(3, 4)
    with pytest.raises(RuntimeError):
        module(sequence)
    with pytest.raises(RuntimeError), torch.no_grad():
        module(sequence)


# --- weights that do not fit each other: torch.nn's words are its matrix product's -----------------------------------------


def reassigned(weight: str, make):
    def call(module, name):
        setattr(module, weight, make(getattr(module, weight).detach()))
        return module(batch())

    return call


UNFIT = {
    "short weight": ("weight_hh_l0", lambda w: nn.Parameter(w[:-4]), RuntimeError),
    "long weight": ("weight_hh_l0", lambda w: nn.Parameter(torch.cat((w, w))), RuntimeError),
    "wide weight": ("weight_ih_l0", lambda w: nn.Parameter(torch.cat((w, w), dim=1)), RuntimeError),
    "short bias": ("bias_hh_l0", lambda b: nn.Parameter(b[:2]), RuntimeError),
    "matrix bias": ("bias_ih_l0", lambda b: nn.Parameter(b[:, None]), RuntimeError),
    "double weight": ("weight_hh_l0", lambda w: nn.Parameter(w.double()), ValueError),
    "weight elsewhere": ("weight_hh_l0", lambda w: nn.Parameter(w.to("meta")), RuntimeError),
    "no bias": ("bias_hh_l0", lambda b: None, TypeError),
}


@each_layer
@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("grad", [True, False])
def test_weights_that_do_not_fit_are_refused(name, case, grad, backend):
    weight, make, error = UNFIT[case]
    with pytest.raises(error), torch.set_grad_enabled(grad):
        reassigned(weight, make)(getattr(rnnkernels, name)(3, 4), name)


@each_layer
@pytest.mark.backends("cpu")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("freed", ["input", "h_0", "w_hh"])
def test_a_tensor_whose_memory_was_freed_is_refused(name, freed, grad, backend):
    """torch.nn reads at address zero. Sharded modules free weights that they gather again when they are needed."""
    module, input, states = getattr(rnnkernels, name)(3, 4), batch(), zeros(name, 1, 2, 4)
    tensors = {"input": input, "h_0": states[0] if name == "LSTM" else states, "w_hh": module.weight_hh_l0.data}
    tensors[freed].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"{freed.replace('_0', '0')} has no memory"), torch.set_grad_enabled(grad):
        module(input, states)


@each_layer
@pytest.mark.backends("cpu")
def test_a_weight_freed_before_backward_is_refused(name, backend):
    module = getattr(rnnkernels, name)(3, 4)
    output = module(batch())[0]
    module.weight_ih_l0.data.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="w_ih has no memory"):
        output.sum().backward()


def test_a_weight_on_another_device_is_refused_in_torch_nns_words(backend):
    weight, make, _ = UNFIT["weight elsewhere"]
    expected, raised = both("LSTM", reassigned(weight, make))
    assert raised == expected


@each_layer
def test_states_of_another_dtype_are_refused_with_torch_nns_type(name, backend):
    expected, raised = both(name, lambda m, name: m(batch(), zeros(name, 1, 2, 4, dtype=torch.float64)))
    assert expected[0].startswith("RuntimeError")
    which = "hidden[0]" if name == "LSTM" else "hidden"
    assert raised == (f"RuntimeError: {which} dtype (torch.float64) does not match input dtype (torch.float32)",)


@each_layer
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_complex_module_is_refused_with_the_reason(name, backend):
    module = getattr(rnnkernels, name)(3, 4).to(torch.complex64)
    with pytest.raises(TypeError, match=r"input must be float32, float64, float16 or bfloat16, got torch\.complex64"):
        module(batch(dtype=torch.complex64))


@each_layer
def test_a_failed_call_leaves_the_module_usable(name, backend):
    module = getattr(rnnkernels, name)(3, 4)
    expected = module(batch())[0]
    for case in ("wrong input size", "double input", "no steps"):
        assert outcome(lambda case=case: SAME_WORDS[case](module, name)) != ("no error",)
    assert torch.equal(module(batch())[0], expected)


# --- cells ---------------------------------------------------------------------------------------------------------------

CELL_SAME_WORDS = {
    "no dimension": lambda m, name: m(torch.tensor(1.0)),
    "three dimensions": lambda m, name: m(batch(2, 2, 3)),
    "wrong input size": lambda m, name: m(batch(2, 7)),
    "wrong input size, unbatched": lambda m, name: m(batch(7)),
    "states of three dimensions": lambda m, name: m(batch(2, 3), zeros(name, 1, 2, 4)),
    "unbatched states with a batch": lambda m, name: m(batch(2, 3), zeros(name, 4)),
    "batched states with no batch": lambda m, name: m(batch(3), zeros(name, 1, 4)),
    "another batch in the states": lambda m, name: m(batch(2, 3), zeros(name, 5, 4)),
    "wrong hidden size": lambda m, name: m(batch(2, 3), zeros(name, 2, 5)),
    "wrong hidden size, unbatched": lambda m, name: m(batch(3), zeros(name, 5)),
    "no tensor": lambda m, name: m([1, 2]),
}


@each_cell
@pytest.mark.parametrize("case", CELL_SAME_WORDS)
def test_a_cell_refuses_in_torch_nns_words(name, case, backend):
    expected, raised = both(name, CELL_SAME_WORDS[case])
    assert raised == expected != ("no error",)


@pytest.mark.parametrize(
    "hx",
    [(batch(2, 4), batch(2, 5)), (batch(2, 4), batch(3, 4)), (batch(2, 4),), (batch(2, 4),) * 3],
    ids=["c of another size", "another batch in c", "h alone", "three"],
)
def test_an_lstm_cell_refuses_states_that_are_no_pair_in_torch_nns_words(hx, backend):
    expected, raised = both("LSTMCell", lambda m, _: m(batch(2, 3), hx))
    assert raised == expected != ("no error",)


CELL_SAME_TYPE = {
    "double input": (lambda m, name: m(batch(2, 3, dtype=torch.float64)), "parameter dtype (torch.float32)"),
    "integer input": (lambda m, name: m(batch(2, 3, dtype=torch.int64)), "parameter dtype (torch.float32)"),
    "complex input": (lambda m, name: m(batch(2, 3, dtype=torch.complex64)), "parameter dtype (torch.float32)"),
    "double states": (lambda m, name: m(batch(2, 3), zeros(name, 2, 4, dtype=torch.float64)), "hidden0 dtype (torch.float64)"),
    "input elsewhere": (lambda m, name: m(batch(2, 3, device="meta")), "not at the same device, found input tensor at meta"),
    "states elsewhere": (lambda m, name: m(batch(2, 3), zeros(name, 2, 4, device="meta")), "hidden tensor at meta"),
    "weights elsewhere": (lambda m, name: m.to("meta")(batch(2, 3)), "parameter tensor at meta"),
    "a square of states": (lambda m, name: m(batch(3), zeros(name, 4, 4)), "hidden0 must have as many dimensions as input"),
}


@each_cell
@pytest.mark.parametrize("case", CELL_SAME_TYPE)
def test_a_cell_refuses_with_torch_nns_type_and_the_reason(name, case, backend):
    call, reason = CELL_SAME_TYPE[case]
    expected, raised = both(name, call)
    assert expected[0].split(":")[0] == raised[0].split(":")[0] == "RuntimeError"
    assert re.search(re.escape(reason), raised[0])


@each_cell
def test_cell_weights_that_do_not_fit_are_refused_with_torch_nns_type(name, backend):
    for weight, keep in (("weight_hh", 9), ("weight_ih", 5), ("bias_ih", 2)):

        def call(module, name, weight=weight, keep=keep):
            setattr(module, weight, nn.Parameter(getattr(module, weight).detach()[:keep]))
            return module(batch(2, 3))

        expected, raised = both(name, call)
        assert expected[0].split(":")[0] == raised[0].split(":")[0] == "RuntimeError"


# --- sizes beyond any machine ----------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("sizes", [(2**62, 4), (3, 2**61), (2**31, 2**31)], ids=str)
def test_parameters_too_large_to_count_are_refused_in_torch_nns_words(name, sizes):
    expected, raised = (outcome(lambda package=package: getattr(package, name)(*sizes)) for package in (nn, rnnkernels))
    assert raised == expected != ("no error",)


@each_layer
@pytest.mark.parametrize("shape", [(1, 2**61, 3), (3, 2**59, 3)], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_a_batch_too_large_to_hold_is_refused_with_torch_nns_type(name, shape, grad, backend):
    with torch.set_grad_enabled(grad):
        expected, raised = both(name, lambda m, _: m(torch.zeros(1, 1, 3).expand(shape)))
    assert expected[0].split(":")[0] == raised[0].split(":")[0] == "RuntimeError"
