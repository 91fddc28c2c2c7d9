"""The short way of a call (:mod:`rnnkernels.direct`): the bits of the long way, and never where somebody would notice."""

import dataclasses
import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from modes import Nothing, Watching
from pairs import CLASSES, pair, tensors
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels
from rnnkernels import _library, direct

pytestmark = pytest.mark.usefixtures("native_library")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def short(module, input, hx=None):
    """What the short way gives, with gradients off."""
    with torch.no_grad():
        if isinstance(module, torch.nn.RNNCellBase):
            return direct.cell(isinstance(module, rnnkernels.LSTMCell), module, input, hx)
        return direct.layers(module, input, hx)


def long(module, input, hx=None):
    """What the module gives when the short way is closed."""
    with torch.no_grad(), Nothing():
        return module(input, hx)


def random_states(module, *shape, dtype=torch.float32):
    """h, or (h, c), of shape (*shape, P) and (*shape, H)."""
    h = torch.randn(*shape, getattr(module, "proj_size", 0) or module.hidden_size, dtype=dtype)
    if isinstance(module, (rnnkernels.GRU, rnnkernels.GRUCell)):
        return h
    return h, torch.randn(*shape, module.hidden_size, dtype=dtype)


def assert_same_bits(ours, expected):
    ours, expected = tensors(ours), tensors(expected)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_layers_have_the_bits_of_the_long_way(name, dtype):
    options = itertools.product((1, 2), (False, True), (True, False), (False, True), (0, 3) if name == "LSTM" else (0,))
    for layers, bidirectional, bias, batch_first, proj_size in options:
        kwargs = {"proj_size": proj_size} if proj_size else {}
        module = getattr(rnnkernels, name)(
            5, 7, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dtype=dtype, **kwargs
        )
        count = layers * (2 if bidirectional else 1)
        for x, shape in (
            (torch.randn(4, 3, 5, dtype=dtype), (count, 4 if batch_first else 3)),
            (torch.randn(4, 5, dtype=dtype), (count,)),
        ):
            for hx in (None, random_states(module, *shape, dtype=dtype)):
                result = short(module, x, hx)
                assert result is not NotImplemented
                assert_same_bits(result, long(module, x, hx))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells_have_the_bits_of_the_long_way(name, dtype):
    for bias, shape in itertools.product((True, False), ((3,), ())):
        module = getattr(rnnkernels, name)(5, 7, bias=bias, dtype=dtype)
        x = torch.randn(*shape, 5, dtype=dtype)
        for hx in (None, random_states(module, *shape, dtype=dtype)):
            result = short(module, x, hx)
            assert result is not NotImplemented
            assert_same_bits(result, long(module, x, hx))


@pytest.mark.parametrize("name", CLASSES)
def test_it_is_taken_and_agrees_with_torch_nn(name, monkeypatch):
    torchs, ours = pair(name, 5, 7)
    x = torch.randn(*(() if "Cell" in name else (4,)), 3, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), torchs(x))
        for function in ("_stack", "_cell"):
            monkeypatch.setattr(rnnkernels.functional, function, lambda *_: pytest.fail("the long way was taken"))
        ours(x)


@pytest.mark.parametrize("count", [1, 2])
def test_large_layers_use_the_pool_and_release_the_interpreter(count, threads):
    threads(count)
    module = rnnkernels.LSTM(80, 96, num_layers=2)
    x = torch.randn(20, 9, 80)
    assert_same_bits(short(module, x), long(module, x))
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: short(module, x), range(16)):
            assert_same_bits(result, long(module, x))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x[:1].expand(4, 3, 5),
        lambda x: x[::2],
        lambda x: x[:, 1:2],
    ],
    ids=["transposed", "expanded", "every other step", "one row"],
)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_rows_may_lie_anywhere(name, view):
    module, x = getattr(rnnkernels, name)(5, 7, bidirectional=True), view(torch.randn(4, 3, 5))
    assert_same_bits(short(module, x), long(module, x))


def test_weights_and_options_are_those_of_the_call():
    module, x = rnnkernels.GRU(5, 7, num_layers=2, dropout=0.5).eval(), torch.randn(4, 3, 5)
    before = short(module, x)
    with torch.no_grad():
        module.weight_hh_l1.mul_(2)
    assert not torch.equal(short(module, x)[0], before[0])
    module.bias_ih_l0 = torch.nn.Parameter(torch.ones(21))
    module.batch_first = True
    assert_same_bits(short(module, x), long(module, x))
    assert short(module.train(), x) is NotImplemented  # dropout


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_a_cell_has_the_biases_it_holds(name):
    torchs, ours = pair(name, 5, 7, bias=False)
    x = torch.randn(3, 5, dtype=torch.float64)
    for module in (torchs, ours):
        for bias in ("bias_ih", "bias_hh"):
            setattr(module, bias, torch.nn.Parameter(torch.arange(1.0, 1 + module.weight_ih.size(0), dtype=torch.float64)))
    assert_same_bits(short(ours, x), long(ours, x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), torchs(x))
    ours.bias_hh = None
    assert short(ours, x) is NotImplemented  # zeros in its place are the long way's


def test_a_long_sequence_of_a_tiny_layer_lets_other_threads_run():
    module, x = rnnkernels.LSTM(1, 1), torch.randn(100000, 1, 1)
    with ThreadPoolExecutor(1) as pool:
        began, ended = threading.Event(), threading.Event()

        def compute():
            began.set()
            result = short(module, x)
            ended.set()
            return result

        future = pool.submit(compute)
        began.wait()
        turns = 0
        while not ended.is_set():
            turns += 1
            time.sleep(0)
        future.result()
    assert turns > 10  # with the interpreter held throughout, one or two


def test_results_are_tensors_of_their_own():
    module, x = rnnkernels.LSTM(5, 7), torch.randn(4, 3, 5)
    expected = long(module, x)
    output, (h, c) = short(module, x)
    for tensor in (output, h, c):
        tensor.fill_(3)
    h.resize_(2, 2)
    assert_same_bits(short(module, x), expected)
    with torch.inference_mode():
        assert all(t.is_inference() for t in tensors(module(x)))


# --- who would notice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context",
    [
        lambda: rnnkernels.use_backend("reference"),
        lambda: rnnkernels.use_backend("aten"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        forward_ad.dual_level,
        Watching,
        Nothing,
    ],
    ids=["reference", "aten", "autocast", "profiler", "forward mode", "dispatch mode", "function mode"],
)
@pytest.mark.parametrize("name", CLASSES)
def test_it_is_closed_while_something_else_goes_on(name, context):
    module = getattr(rnnkernels, name)(5, 7)
    x = torch.randn(*(() if "Cell" in name else (4,)), 3, 5)
    with torch.no_grad(), context():
        if isinstance(module, torch.nn.RNNCellBase):
            assert direct.cell(name == "LSTMCell", module, x, None) is NotImplemented
        else:
            assert direct.layers(module, x, None) is NotImplemented
        module(x)


def test_a_profiler_of_all_threads_is_noticed_in_each(native_library):
    module = rnnkernels.LSTM(5, 7)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), ThreadPoolExecutor(1) as pool:
        assert pool.submit(short, module, torch.randn(4, 3, 5)).result() is NotImplemented


def test_a_default_device_changes_nothing():
    module, x = rnnkernels.LSTM(5, 7), torch.randn(4, 3, 5)
    expected = long(module, x)
    for device in ("cpu", "meta"):
        with torch.device(device):
            assert_same_bits(short(module, x), expected)
            with Nothing():
                assert short(module, x) is NotImplemented


def test_a_backend_asked_for_by_name_is_the_same_way():
    module, x = rnnkernels.LSTM(5, 7), torch.randn(4, 3, 5)
    with rnnkernels.use_backend("cpu"):
        assert short(module, x) is not NotImplemented


def test_tracers_see_the_operators():
    module, x = rnnkernels.LSTM(5, 7), torch.randn(4, 3, 5)
    with torch.no_grad():
        graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: module(x)[0])(x).graph
        assert any("lstm_forward" in str(node.target) for node in graph.nodes)
        with Watching() as watching:
            module(x)
        assert "rnnkernels.lstm_forward.default" in watching.seen
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            module(x)
        assert "rnnkernels::lstm_forward" in [event.key for event in profile.key_averages()]
        batched = torch.func.vmap(lambda x: module(x)[0])(torch.stack([x, x]))
        torch.testing.assert_close(batched[1], module(x)[0])


# --- what it leaves to the long way ---------------------------------------------------------------------------------------


class _Subclass(torch.Tensor):
    pass


X = torch.ones(4, 3, 5)


@pytest.mark.parametrize(
    "x, hx",
    [
        (X.as_subclass(_Subclass), None),
        (X.double(), None),
        (X.int(), None),
        (X.to("meta"), None),
        (X.to_sparse(), None),
        (torch._neg_view(X), None),  # its memory holds something else
        (torch._efficientzerotensor(X.shape), None),  # without memory
        (X, (torch.ones(1, 3, 7), torch._neg_view(torch.ones(1, 3, 7)))),
        (X[..., :4], None),
        (torch.ones(4, 3, 10)[..., ::2], None),
        (X[:0], None),
        (X[:, :0], None),
        (X[0, 0], None),
        (X[None], None),
        (pack_padded_sequence(X, [4, 3, 3]), None),
        ("x", None),
        (X, [torch.ones(1, 3, 7)] * 2),
        (X, (torch.ones(1, 3, 7),)),
        (X, (torch.ones(1, 3, 7), torch.ones(1, 2, 7))),
        (X, (torch.ones(1, 3, 7), torch.ones(1, 3, 7).double())),
        (X, (torch.ones(3, 7), torch.ones(3, 7))),
        (X, (torch.ones(1, 7, 3).mT, torch.ones(1, 3, 7))),
        (X, torch.ones(1, 3, 7)),
    ],
)
def test_arguments_it_does_not_take(x, hx):
    assert short(rnnkernels.LSTM(5, 7), x, hx) is NotImplemented


def _without_a_bias(module):
    module.bias_hh_l0 = None


def _of_another_dtype(module):
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.double())


def _of_another_shape(module):
    module.weight_hh_l0 = torch.nn.Parameter(torch.ones(28, 6))


def _strided(module):
    module.weight_hh_l0 = torch.nn.Parameter(torch.ones(7, 28).t())


def _parametrized(module):
    parametrize.register_parametrization(module, "weight_hh_l0", torch.nn.Identity())


def _of_absurdly_many_layers(module):
    module.num_layers = 10**18


def _with_parameters_that_are_computed(module):
    class Doubled(dict):
        def __getitem__(self, name):
            return 2 * super().__getitem__(name)

    module.__dict__["_parameters"] = Doubled(module._parameters)


@pytest.mark.parametrize(
    "change",
    [
        _with_parameters_that_are_computed,
        _without_a_bias,
        _of_another_dtype,
        _of_another_shape,
        _strided,
        _parametrized,
        _of_absurdly_many_layers,
    ],
)
def test_modules_it_does_not_take(change):
    module = rnnkernels.LSTM(5, 7)
    change(module)
    assert short(module, X) is NotImplemented


def test_values_that_memory_does_not_hold():
    module = rnnkernels.LSTM(5, 7)
    with torch.no_grad():
        assert_same_bits(module(torch._neg_view(X)), module(-X))
        assert_same_bits(module(torch._efficientzerotensor(X.shape)), module(0 * X))


@pytest.mark.parametrize("batch", [0, 1])
def test_an_empty_batch_is_the_long_ways(batch):
    module, x = rnnkernels.GRU(5, 7), torch.randn(4, batch, 5)
    assert (short(module, x) is NotImplemented) == (batch == 0)
    with torch.no_grad():
        assert module(x)[0].shape == (4, batch, 7)


# --- where there is no short way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({}, "built without rnnkernels._eager"),
        ({"eager": "malformed"}, "built without rnnkernels._eager"),
        ({"eager": {"status": "failed", "reason": "no compiler", "torch": None}}, "no compiler"),
        ({"eager": {"status": "built", "reason": None, "torch": "1.0"}}, "compiled against torch 1.0, and this is"),
    ],
    ids=["older", "malformed", "failed", "another torch"],
)
def test_without_a_module_for_this_torch_it_never_serves(monkeypatch, report, why):
    status = dataclasses.replace(_library.load(), build=report)
    monkeypatch.setattr(_library, "load", lambda: status)
    layers, cell, reason = direct._open()
    assert why in reason and layers(None, None, None) is NotImplemented and cell(True, None, None, None) is NotImplemented


def test_without_the_library_or_the_module_it_never_serves(monkeypatch):
    monkeypatch.setattr(_library, "load", lambda: _library.Status(False, "gone", _library.PATH))
    assert direct._open()[2] == "gone"
    monkeypatch.undo()

    elsewhere = dataclasses.replace(_library.load(), path=_library.PATH.with_name("nowhere.so"))
    monkeypatch.setattr(_library, "load", lambda: elsewhere)
    layers, _, reason = direct._open()
    assert "nowhere.so" in reason and layers(None, None, None) is NotImplemented
    monkeypatch.undo()

    monkeypatch.setitem(sys.modules, "rnnkernels._eager", None)
    layers, _, reason = direct._open()
    assert "_eager" in reason and layers(None, None, None) is NotImplemented
