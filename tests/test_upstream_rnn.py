"""What torch's test_nn.py proves of nn.LSTM and nn.GRU, proved of ours; each test is named after the subject there.

The subjects that fill files of their own here are weight_norm (test_parametrize.py), PackedSequence (test_packed_sequence.py),
RNN_dropout (test_dropout.py), save_lstm_compatibility (test_parameters.py) and the ModuleInfo tests (test_module_info.py).
"""

import copy
import itertools
import pickle

import pytest
import torch
from pairs import CELLS, LAYERS, assert_same_call, assert_same_values, outcome, pair, states, zeros
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkernels

each_layer = pytest.mark.parametrize("name", LAYERS)
each_cell = pytest.mark.parametrize("name", CELLS)


def projections(name: str) -> tuple[dict, ...]:
    return ({}, {"proj_size": 2}) if name == "LSTM" else ({},)


@each_layer
def test_rnn_args_check(name, backend):
    """Every wrong size of input and state, with every number of layers and directions, ends as torch.nn's."""
    steps, batch, input_size, hidden_size, bad = 4, 5, 3, 7, 13
    for num_layers, directions in itertools.product((1, 3), (1, 2)):
        modules = pair(name, input_size, hidden_size, num_layers, bidirectional=directions == 2, dtype=torch.float32)
        right = dict(i=input_size, n=batch, layers=num_layers * directions, m=batch, h=hidden_size)
        for wrong in (None, *right):
            if wrong == "n":
                continue  # the batch of the states is what gets blamed: "m"
            size = right | ({wrong: bad} if wrong else {})
            x = torch.randn(steps, size["n"], size["i"])
            hx = zeros(name, size["layers"], size["m"], size["h"])
            expected, raised = (outcome(lambda module=module, x=x, hx=hx: module(x, hx)) for module in modules)
            assert raised == expected
            assert (raised == ("no error",)) == (wrong is None)


def test_projections_lstm_args_check(backend):
    for num_layers, bidirectional in itertools.product((1, 3), (False, True)):
        modules = pair("LSTM", 3, 7, num_layers, bidirectional=bidirectional, proj_size=2, dtype=torch.float32)
        layers = num_layers * (2 if bidirectional else 1)
        for h_size, c_size, h_layers, c_layers in ((2, 7, 0, 0), (7, 7, 0, 0), (2, 2, 0, 0), (2, 7, 1, 0), (2, 7, 0, 1)):
            hx = torch.zeros(layers + h_layers, 5, h_size), torch.zeros(layers + c_layers, 5, c_size)
            x = torch.randn(4, 5, 3)
            # The last word: before it torch.nn warns, once a process, that oneDNN has no projections.
            expected, raised = (outcome(lambda module=module, x=x, hx=hx: module(x, hx))[-1] for module in modules)
            assert raised == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_projections_lstm_initial_hidden_state(bias, bidirectional, batch_first, backend):
    torchs, ours = pair("LSTM", 30, 20, 2, bias=bias, bidirectional=bidirectional, batch_first=batch_first, proj_size=10)
    x = torch.randn(3, 5, 30, dtype=torch.float64)
    batch, layers = x.size(0 if batch_first else 1), 4 if bidirectional else 2
    hx = torch.zeros(layers, batch, 10).double(), torch.zeros(layers, batch, 20).double()
    assert_same_values(ours(x), ours(x, hx))
    assert_same_values(ours(x), torchs(x))


@each_layer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnn_initial_hidden_state(name, bidirectional, backend):
    _, ours = pair(name, 30, 20, 2, bidirectional=bidirectional)
    x = torch.randn(10, 32, 30, dtype=torch.float64)
    hidden = zeros(name, 4 if bidirectional else 2, 32, 20, dtype=torch.float64)
    assert_same_values(ours(x), ours(x, hidden))


@each_layer
@pytest.mark.parametrize("variable_length", [False, True])
def test_rnns_against_torch_nns_in_64_combinations(name, variable_length, backend):
    """test_RNN_cpu_vs_cudnn: bias, directions, dropout, layouts, contiguity, states given or not."""
    lengths = torch.tensor([7, 5, 5, 2, 1, 1])
    flags = itertools.product((True, False), (True, False), (True, False), (0.0, 1.0), (True, False), (True, False))
    for bias, bidirectional, batch_first, dropout, contiguous, given in flags:
        options = dict(bias=bias, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout)
        torchs, ours = pair(name, 10, 6, 2, **options)
        shape = (6, 7, 10) if batch_first else (7, 6, 10)
        x = torch.randn(shape, dtype=torch.float64)
        x = x if contiguous else x.mT.contiguous().mT
        x.requires_grad_()
        hx = states(torchs, 6) if given else None
        if variable_length:
            sequence = pack_padded_sequence(x, lengths, batch_first).data.detach().requires_grad_()
            packed = pack_padded_sequence(x, lengths, batch_first)._replace(data=sequence)
            assert_same_call(torchs, ours, packed, hx)
        else:
            assert_same_call(torchs, ours, x, hx)


@each_layer
def test_seq_len_zero(name, backend):
    for shape, options in (((0, 5, 3), {}), ((5, 0, 3), dict(batch_first=True)), ((0, 3), {})):
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
            getattr(rnnkernels, name)(3, 4, **options)(torch.ones(shape))


@each_layer
def test_rnn_retain_variables(name, backend):
    _, ours = pair(name, 10, 20, num_layers=2)
    x = torch.randn(5, 6, 10, dtype=torch.float64, requires_grad=True)
    output = ours(x)[0]
    output.sum().backward(retain_graph=True)
    gradients = [x.grad.clone()] + [p.grad.clone() for p in ours.parameters()]
    for _ in range(4):
        ours.zero_grad()
        x.grad.zero_()
        output.sum().backward(retain_graph=True)
        again = [x.grad] + [p.grad for p in ours.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


@each_layer
def test_partial_flat_weights(name, backend):
    _, ours = pair(name, 3, 4)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = ours(x)
    weight = ours.weight_ih_l0
    del ours.weight_ih_l0
    assert not hasattr(ours, "weight_ih_l0")
    ours.to("cpu").double()  # moving a module that lacks a weight does not fail
    ours.weight_ih_l0 = weight.detach() * 1
    assert_same_values(ours(x), expected)


@each_layer
def test_rnn_weight_tying(name, backend):
    """Both layers of a stack, and both directions, with the same weights: through dropout and an optimizer step."""
    torchs, ours = pair(name, 4, 4, 2, bidirectional=False)
    for module in (torchs, ours):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(module, f"{kind}_l1", getattr(module, f"{kind}_l0"))
        assert len(list(module.parameters())) == 4
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert_same_call(torchs, ours, x)
    for module in (torchs, ours):
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        module.zero_grad()
    assert_same_call(torchs, ours, x)
    assert_same_values(dict(ours.state_dict()), dict(torchs.state_dict()))


@each_layer
def test_variable_sequence(name, backend):
    """A packed batch, and the same padded: equal where there is data, and equal gradients."""
    lengths = [7, 7, 6, 2, 1]
    for batch_first, num_layers, bidirectional in itertools.product((False, True), (1, 2), (False, True)):
        for projection in projections(name):
            options = dict(batch_first=batch_first, bidirectional=bidirectional, **projection)
            torchs, ours = pair(name, 3, 4, num_layers, **options)
            padded = torch.randn((5, 7, 3) if batch_first else (7, 5, 3), dtype=torch.float64)
            results = []
            for module in (torchs, ours):
                leaf = padded.clone().requires_grad_()
                output, final = module(pack_padded_sequence(leaf, lengths, batch_first))
                unpacked, unpacked_lengths = pad_packed_sequence(output, batch_first)
                assert unpacked_lengths.tolist() == lengths
                unpacked.sum().backward()
                results.append((unpacked, final, leaf.grad, *(p.grad for p in module.parameters())))
            assert_same_values(results[1], results[0])


@each_layer
@pytest.mark.parametrize("p", [0.0, 0.1, 0.234, 0.5, 0.9, 1.0])
def test_rnn_dropout(name, p, backend):
    """Weights of one, inputs of one: the second layer's pre-activation counts the units that were kept."""
    _, ours = pair(name, 8, 100, 2, bias=False, dropout=p)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(0.01)
    ours.train()
    output, _ = ours(torch.ones(1, 1, 8, dtype=torch.float64))
    assert torch.equal(output, output[..., :1].expand(output.shape))  # every unit saw the same masked layer
    kept = ours.eval()(torch.ones(1, 1, 8, dtype=torch.float64))[0]
    assert p != 0.0 or torch.equal(output, kept)
    assert p != 1.0 or (output == 0).all()


@each_layer
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_rnn_dropout_state(name, train, duplicate, backend):
    """A copy drops out like the original under the same seed, and either draws anew at each call."""
    _, ours = pair(name, 10, 20, 2, dropout=0.5)
    ours.train(train)
    twin = duplicate(ours)
    x = torch.ones(1, 1, 10, dtype=torch.float64)
    outputs = []
    for module in (ours, twin):
        torch.manual_seed(4)
        outputs.append([module(x)[0] for _ in range(2)])
    (first, second), (twin_first, twin_second) = outputs
    assert torch.equal(first, twin_first) and torch.equal(second, twin_second)
    assert torch.equal(first, second) == (not train)


@each_layer
def test_rnn_change_dropout(name, backend):
    for train, p_before, p_after in itertools.product((True, False), (0.0, 0.5), (0.0, 0.5)):
        _, ours = pair(name, 10, 20, 2, dropout=p_before)
        ours.train(train)
        x = torch.ones(3, 2, 10, dtype=torch.float64)
        ours(x)
        ours.dropout = p_after
        assert torch.equal(ours(x)[0], ours(x)[0]) == (not train or p_after == 0.0)


@each_cell
def test_rnn_cell_no_broadcasting(name, backend):
    """test_cell: sizes that could be broadcast are refused all the same."""
    cell = getattr(rnnkernels, name)(10, 20)
    for rows, width in ((1, 20), (3, 1)):
        with pytest.raises(RuntimeError):
            cell(torch.randn(3, 10), zeros(name, rows, width))


@each_cell
@pytest.mark.parametrize("bias", [True, False])
def test_cell_forward_over_steps(name, bias, backend):
    torchs, ours = pair(name, 10, 20, bias=bias)
    xs = torch.randn(6, 3, 10, dtype=torch.float64)
    results = []
    for module in (torchs, ours):
        hx = None
        for x in xs:
            hx = module(x, hx)
        (sum(h.sum() for h in hx) if isinstance(hx, tuple) else hx.sum()).backward()
        results.append((hx, [p.grad for p in module.parameters()]))
    assert_same_values(results[1], results[0])


@each_layer
def test_a_cell_is_one_step_of_a_layer(name, backend):
    _, layer = pair(name, 3, 4)
    _, cell = pair(name + "Cell", 3, 4)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    stepped = cell(x[0])
    assert_same_values(layer(x)[0][0], stepped[0] if name == "LSTM" else stepped)


@each_layer
def test_rnn_weights_of_views_and_slices(name, backend):
    """Weights that are slices of one large tensor, as cuDNN's flat buffer makes them."""
    torchs, ours = pair(name, 3, 4, 2)
    flat = torch.cat([p.detach().flatten() for p in torchs.parameters()])
    offset = 0
    for key, parameter in list(ours.named_parameters()):
        setattr(ours, key, nn.Parameter(flat[offset : offset + parameter.numel()].view_as(parameter)))
        offset += parameter.numel()
    assert len({p.untyped_storage().data_ptr() for p in ours.parameters()}) == 1
    assert_same_call(torchs, ours, torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True))
