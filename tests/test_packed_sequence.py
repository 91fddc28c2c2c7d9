"""PackedSequence in, PackedSequence out: every combination of options, values and gradients as torch.nn's."""

import itertools

import pytest
import torch
from pairs import LAYERS, assert_same_values, copied, outputs_and_gradients, pair, states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

import rnnkernels

each_layer = pytest.mark.parametrize("name", LAYERS)
SORTED, UNSORTED = (5, 3, 3, 1), (3, 1, 5, 3)


def sequences(lengths: tuple[int, ...], size: int = 3) -> list[torch.Tensor]:
    return [torch.randn(length, size, dtype=torch.float64) for length in lengths]


def packed(lengths: tuple[int, ...], enforce_sorted: bool) -> PackedSequence:
    sequence = pack_sequence(sequences(lengths), enforce_sorted=enforce_sorted)
    sequence.data.requires_grad_()
    return sequence


@each_layer
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_combination_equals_torch_nn_in_values_and_gradients(
    name, enforce_sorted, with_states, num_layers, bidirectional, backend
):
    proj_sizes = ({}, {"proj_size": 2}) if name == "LSTM" else ({},)
    for batch_first, bias, projection in itertools.product((False, True), (True, False), proj_sizes):
        options = dict(num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
        torchs, ours = pair(name, 3, 4, **options, **projection)
        sequence = packed(SORTED if enforce_sorted else UNSORTED, enforce_sorted)
        hx = states(torchs, 4) if with_states else None
        expected = outputs_and_gradients(torchs, *copied((sequence, hx)))
        assert_same_values(outputs_and_gradients(ours, *copied((sequence, hx))), expected)


@each_layer
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_the_output_keeps_order_and_indices(name, enforce_sorted, backend):
    _, ours = pair(name, 3, 4)
    sequence = packed(SORTED if enforce_sorted else UNSORTED, enforce_sorted)
    output, _ = ours(sequence)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, sequence.batch_sizes)
    assert output.batch_sizes.device.type == "cpu" and output.batch_sizes.dtype == torch.int64
    assert output.sorted_indices is sequence.sorted_indices
    assert output.unsorted_indices is sequence.unsorted_indices
    assert (output.sorted_indices is None) == enforce_sorted


@each_layer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_sequence_gets_what_it_gets_alone(name, bidirectional, backend):
    _, ours = pair(name, 3, 4, num_layers=2, bidirectional=bidirectional)
    own = sequences(UNSORTED)
    hx = states(ours, 4)
    output, final = ours(pack_sequence(own, enforce_sorted=False), hx)
    padded, lengths = pad_packed_sequence(output)
    assert tuple(lengths) == UNSORTED
    for row, sequence in enumerate(own):
        own_hx = tuple(h[:, row] for h in hx) if name == "LSTM" else hx[:, row]
        alone, alone_final = ours(sequence, own_hx)
        assert_same_values(padded[: len(sequence), row], alone)
        own_final = tuple(f[:, row] for f in final) if name == "LSTM" else final[:, row]
        assert_same_values(own_final, alone_final)


@each_layer
def test_equal_lengths_give_what_a_dense_batch_gives(name, backend):
    _, ours = pair(name, 3, 4, num_layers=2, bidirectional=True)
    own = sequences((5, 5, 5))
    output, final = ours(pack_sequence(own))
    dense, dense_final = ours(pad_sequence(own))
    assert_same_values(pad_packed_sequence(output)[0], dense)
    assert_same_values(final, dense_final)


@each_layer
@pytest.mark.parametrize("lengths", [(1,), (4,), (1, 1, 1), (6, 1), (3, 3, 2, 2, 1, 1)], ids=str)
def test_any_lengths_equal_torch_nn(name, lengths, backend):
    torchs, ours = pair(name, 3, 4, num_layers=2, bidirectional=True)
    sequence = packed(lengths, enforce_sorted=True)
    expected = outputs_and_gradients(torchs, copied(sequence))
    assert_same_values(outputs_and_gradients(ours, copied(sequence)), expected)


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_flow_through_packing_and_padding(name, batch_first, backend):
    modules = pair(name, 3, 4, batch_first=batch_first)
    padded = pad_sequence(sequences(UNSORTED), batch_first=batch_first)
    gradients = []
    for module in modules:
        leaf = padded.clone().requires_grad_()
        output, _ = module(pack_padded_sequence(leaf, torch.tensor(UNSORTED), batch_first, enforce_sorted=False))
        pad_packed_sequence(output, batch_first)[0].pow(2).sum().backward()
        gradients.append(leaf.grad)
    assert_same_values(gradients[1], gradients[0])
    dead = padded == 0  # padding takes no part
    assert (gradients[1][dead] == 0).all()


@each_layer
def test_packed_data_may_have_any_strides(name, backend):
    torchs, ours = pair(name, 3, 4)
    sequence = packed(SORTED, enforce_sorted=True)
    strided = sequence._replace(data=sequence.data.detach().t().contiguous().t())
    assert_same_values(tuple(ours(strided)[0][:1]), tuple(torchs(sequence)[0][:1]))


@each_layer
def test_a_packed_module_may_be_called_again_with_other_lengths(name, backend):
    torchs, ours = pair(name, 3, 4)
    for lengths in (UNSORTED, (2, 7), (4,)):
        sequence = packed(lengths, enforce_sorted=False)
        assert_same_values(ours(sequence)[1], torchs(sequence)[1])


@each_layer
def test_final_states_of_unsorted_sequences_come_in_the_callers_order(name, backend):
    _, ours = pair(name, 3, 4)
    own = sequences(UNSORTED)
    _, unsorted = ours(pack_sequence(own, enforce_sorted=False))
    order = sorted(range(4), key=lambda row: -UNSORTED[row])
    _, final = ours(pack_sequence([own[row] for row in order]))
    first = (lambda states: states[0]) if name == "LSTM" else (lambda states: states)
    assert_same_values(first(unsorted)[:, order], first(final))


@each_layer
def test_dropout_zeroes_packed_rows_between_layers_as_torch_nns(name, backend):
    sequence = packed(UNSORTED, enforce_sorted=False)
    results = []
    for module in pair(name, 3, 4, num_layers=3, dropout=0.5):
        torch.manual_seed(5)
        results.append(module(sequence)[1])
    assert_same_values(results[1], results[0])


@each_layer
def test_a_sequential_reads_the_output_of_a_packed_module(name):
    model = nn.ModuleList([getattr(rnnkernels, name)(3, 4), getattr(nn, name)(4, 5), getattr(rnnkernels, name)(5, 2)])
    sequence: object = pack_sequence([torch.randn(length, 3) for length in UNSORTED], enforce_sorted=False)
    for module in model:
        sequence, _ = module(sequence)
    assert sequence.data.shape == (sum(UNSORTED), 2)
