"""Constructors take torch.nn's arguments, refuse what it refuses in its words, and print as it prints."""

import inspect
import itertools

import pytest
import torch
from pairs import CELLS, CLASSES, LAYERS, outcome, pair
from torch import nn

import rnnkernels

REFUSED = [
    dict(bias=0),
    dict(bias="True"),
    dict(batch_first=1),
    dict(input_size=3.0),
    dict(input_size="3"),
    dict(input_size=0),
    dict(input_size=-1),
    dict(hidden_size=5.0),
    dict(hidden_size=0),
    dict(hidden_size=-2),
    dict(num_layers=0),
    dict(num_layers=-1),
    dict(dropout=-0.1),
    dict(dropout=1.1),
    dict(dropout=True),
    dict(dropout="a lot"),
    dict(dropout=None),
    dict(dropout=0.5, num_layers=1),
    dict(dropout=1, num_layers=1),
    dict(proj_size=0),
    dict(proj_size=2),
    dict(proj_size=4),
    dict(proj_size=5),
    dict(proj_size=-1),
    dict(nonlinearity="relu"),
    dict(device="nowhere"),
    dict(dtype="float32"),
    dict(dtype=torch.int64),
]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("arguments", REFUSED, ids=str)
def test_a_layer_ends_as_torch_nn_does_on_arguments_it_may_refuse(name, arguments):
    arguments = {"input_size": 3, "hidden_size": 4, **arguments}
    expected = outcome(lambda: getattr(nn, name)(**arguments))
    assert outcome(lambda: getattr(rnnkernels, name)(**arguments)) == expected


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    "arguments", [(3, -1), (-1, 4), (3.0, 4), ("3", 4), (3,), (3, 4, True, "nowhere"), (3, 4, True, None, torch.int64)], ids=str
)
def test_a_cell_ends_as_torch_nn_does_on_arguments_it_may_refuse(name, arguments):
    assert outcome(lambda: getattr(rnnkernels, name)(*arguments)) == outcome(lambda: getattr(nn, name)(*arguments))


def test_a_gru_refuses_a_projection_given_by_position_too():
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        rnnkernels.GRU(3, 4, 1, True, False, 0.0, False, 2)


@pytest.mark.parametrize("name", LAYERS)
def test_all_arguments_may_be_given_by_position(name):
    arguments = (3, 4, 2, False, True, 0.5, True, 0, "cpu", torch.float64)
    torchs, ours = getattr(nn, name)(*arguments), getattr(rnnkernels, name)(*arguments)
    fields = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    assert [getattr(ours, f) for f in fields] == [getattr(torchs, f) for f in fields]
    assert type(ours.dropout) is type(torchs.dropout) is float
    assert ours.weight_ih_l0.dtype == torch.float64


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_may_have_no_hidden_units(name):
    torchs, ours = pair(name, 3, 0)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in torchs.parameters()]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_prints_as_torch_nns(name):
    options = itertools.product(
        (1, 2), (True, False), (False, True), (0.0, 0.5), (False, True), (0, 2) if name == "LSTM" else (0,)
    )
    for num_layers, bias, batch_first, dropout, bidirectional, proj_size in options:
        if dropout and num_layers == 1:
            continue  # torch.nn warns: see above
        arguments = dict(num_layers=num_layers, bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional)
        torchs, ours = pair(name, 3, 4, **arguments, **({"proj_size": proj_size} if proj_size else {}))
        assert repr(ours) == repr(torchs)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_prints_as_torch_nns(name, bias):
    torchs, ours = pair(name, 3, 4, bias=bias)
    assert repr(ours) == repr(torchs)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_derive_from_torch_nns_base_and_not_from_its_class(name):
    ours = getattr(rnnkernels, name)
    assert issubclass(ours, nn.RNNCellBase if name in CELLS else nn.RNNBase)
    assert not issubclass(ours, getattr(nn, name))  # torch.compile refuses subclasses of nn.LSTM and nn.GRU
    assert ours.__name__ == name


@pytest.mark.parametrize("name", CELLS)
def test_cells_have_torch_nns_signature(name):
    ours, torchs = (inspect.signature(getattr(package, name)) for package in (rnnkernels, nn))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [(p.name, p.default) for p in torchs.parameters.values()]


@pytest.mark.parametrize("name", CLASSES)
def test_a_subclass_may_add_to_a_module(name):
    class Doubled(getattr(rnnkernels, name)):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    module, plain = Doubled(3, 4), getattr(rnnkernels, name)(3, 4)
    module.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(module(x), plain(2 * x), rtol=0, atol=0)
