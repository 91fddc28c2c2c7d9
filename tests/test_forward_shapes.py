"""What a module may be given and what comes back: batched, unbatched, empty, strided, one step or many, in training and eval."""

import itertools

import pytest
import torch
from pairs import CELLS, CLASSES, LAYERS, assert_same_call, assert_same_values, copied, pair, states, zeros

import rnnkernels

each_layer = pytest.mark.parametrize("name", LAYERS)
each_cell = pytest.mark.parametrize("name", CELLS)
each_class = pytest.mark.parametrize("name", CLASSES)
STACKS = [
    dict(num_layers=num_layers, bidirectional=bidirectional, bias=bias)
    for num_layers, bidirectional, bias in itertools.product((1, 3), (False, True), (True, False))
]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@each_layer
@pytest.mark.parametrize("options", STACKS, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_states", [False, True])
def test_batched_and_unbatched_calls_equal_torch_nns(name, options, batch_first, with_states, backend):
    for projection in ({}, {"proj_size": 2}) if name == "LSTM" else ({},):
        for shape, batch in (((5, 2, 3), 5 if batch_first else 2), ((5, 3), None)):
            torchs, ours = pair(name, 3, 4, batch_first=batch_first, **options, **projection)
            hx = states(torchs, batch) if with_states else None
            assert_same_call(torchs, ours, random(*shape), hx)


@each_cell
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("batch", [None, 1, 5])
def test_a_step_equals_torch_nns(name, bias, with_states, batch, backend):
    torchs, ours = pair(name, 3, 4, bias=bias)
    x = random(3) if batch is None else random(batch, 3)
    assert_same_call(torchs, ours, x, states(torchs, batch) if with_states else None)


@each_cell
@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_a_cell_that_lost_one_bias_does_without_it(name, missing, backend):
    torchs, ours = pair(name, 3, 4)
    for module in (torchs, ours):
        setattr(module, missing, None)
    assert_same_call(torchs, ours, random(5, 3))


@each_layer
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4, 3), (7, 1, 3), (1, 3)])
def test_one_step_and_one_sequence_are_not_special(name, shape, backend):
    assert_same_call(*pair(name, 3, 4, num_layers=2, bidirectional=True), random(*shape))


@each_layer
@pytest.mark.parametrize("options", STACKS, ids=str)
def test_an_empty_batch_gives_empty_results_and_zero_gradients(name, options, backend):
    torchs, ours = pair(name, 3, 4, **options)
    assert_same_call(torchs, ours, random(5, 0, 3))
    assert all((parameter.grad == 0).all() for parameter in ours.parameters())


@each_cell
def test_an_empty_batch_of_steps_gives_empty_results(name, backend):
    assert_same_call(*pair(name, 3, 4), random(0, 3))


@each_cell
def test_a_cell_without_hidden_units_computes_nothing(name, backend):
    torchs, ours = pair(name, 3, 0)
    assert_same_values(ours(random(2, 3)), torchs(random(2, 3)))


STRIDED = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other feature": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "every other step": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "reversed storage": lambda x: x.flip(0).contiguous().flip(0),
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "offset": lambda x: torch.cat((x[:1], x))[1:],
    "features first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
}


@each_layer
@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("batch_first", [False, True])
def test_input_and_states_may_have_any_strides(name, layout, batch_first, backend):
    torchs, ours = pair(name, 3, 4, num_layers=2, batch_first=batch_first)
    x, hx = random(5, 5, 3), states(torchs, 5)
    view = STRIDED[layout]
    results = []
    for module in (torchs, ours):
        own_x, own_hx = copied((x, hx))
        strided = tuple(view(h) for h in own_hx) if name == "LSTM" else view(own_hx)
        output, final = module(view(own_x), strided)
        (output.sum() + output.pow(2).sum()).backward()
        leaves = (own_x, *(own_hx if name == "LSTM" else (own_hx,)))
        results.append((output, final, *(leaf.grad for leaf in leaves), *(p.grad for p in module.parameters())))
    assert_same_values(results[1], results[0])


@each_cell
@pytest.mark.parametrize("layout", ["transposed", "every other feature", "expanded", "offset"])
def test_a_steps_operands_may_have_any_strides(name, layout, backend):
    torchs, ours = pair(name, 3, 4)
    x, h = STRIDED[layout](random(5, 3)), STRIDED[layout](random(5, 4))
    hx = (h, -h) if name == "LSTMCell" else h
    assert_same_values(ours(x, hx), torchs(x, hx))


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_results_are_laid_out_as_torch_nns(name, batch_first, backend):
    torchs, ours = pair(name, 3, 4, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = random(5, 2, 3)
    for expected, result in zip(torchs(x), ours(x), strict=True):
        assert type(result) is type(expected)
    assert ours(x)[0].stride() == torchs(x)[0].stride()


@each_class
def test_states_may_come_as_a_list(name, backend):
    torchs, ours = pair(name, 3, 4)
    x = random(5, 3) if name in CELLS else random(5, 5, 3)
    hx = states(torchs, 5)
    hx = list(hx) if isinstance(hx, tuple) else hx
    assert_same_call(torchs, ours, x, hx)


@each_layer
def test_zero_states_and_no_states_are_the_same(name, backend):
    _, ours = pair(name, 3, 4, num_layers=2)
    x = random(5, 2, 3)
    assert_same_values(ours(x, zeros(name, 2, 2, 4, dtype=torch.float64)), ours(x))


@each_class
@pytest.mark.parametrize("training", [True, False])
def test_backward_works_in_training_and_in_eval(name, training, backend):
    torchs, ours = pair(name, 3, 4)
    torchs.train(training), ours.train(training)
    assert_same_call(torchs, ours, random(5, 3))


@each_class
def test_grad_is_recorded_only_where_wanted(name, backend):
    _, ours = pair(name, 3, 4)
    x = random(5, 3).detach()
    with torch.no_grad():
        assert not ours(x)[0].requires_grad
    with torch.inference_mode():
        assert ours(x)[0].is_inference()
    assert ours(x)[0].requires_grad
    assert not ours.requires_grad_(False)(x)[0].requires_grad
    assert ours(x.requires_grad_())[0].requires_grad


@each_class
def test_some_parameters_may_be_frozen(name, backend):
    torchs, ours = pair(name, 3, 4)
    for module in (torchs, ours):
        next(module.parameters()).requires_grad_(False)
    assert_same_call(torchs, ours, random(5, 3).detach())


@each_layer
def test_explain_answers_for_a_module_and_its_input(name):
    _, ours = pair(name, 3, 4, num_layers=2, bidirectional=True)
    request = ours.request()
    assert (request.cell, request.input_size, request.hidden_size) == (name.lower(), 3, 4)
    assert (request.num_layers, request.bidirectional, request.packed) == (2, True, False)
    assert request.dtype == torch.float64 and request.device.type == "cpu"
    packed = torch.nn.utils.rnn.pack_sequence([random(5, 3)])
    assert ours.request(packed).packed
    with torch.autocast("cpu", torch.bfloat16):
        lowered = ours.float().request(random(5, 2, 3).float()).dtype
    assert lowered == (torch.bfloat16 if name == "LSTM" else torch.float32)
    assert rnnkernels.explain(ours).chosen is not None


@each_cell
def test_explain_answers_for_a_cell(name):
    _, ours = pair(name, 3, 4)
    request = ours.request(random(5, 3))
    assert (request.cell, request.input_size, request.hidden_size) == (name.removesuffix("Cell").lower(), 3, 4)
    assert rnnkernels.explain(ours).chosen is not None
