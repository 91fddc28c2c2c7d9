"""Dropout acts between layers, in training, with torch.nn's random numbers on the CPU."""

import pytest
import torch
from pairs import LAYERS, assert_same_call, assert_same_values, outputs_and_gradients, pair
from torch.utils.checkpoint import checkpoint

each_layer = pytest.mark.parametrize("name", LAYERS)


def example() -> torch.Tensor:
    return torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)


@each_layer
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("options", [{}, dict(bidirectional=True), dict(batch_first=True, num_layers=3)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_the_same_seed_gives_torch_nns_values_and_gradients(name, p, options, training, backend):
    options = {"num_layers": 2, **options}
    x = example()
    results = []
    for module in pair(name, 3, 4, dropout=p, **options):
        module.train(training)
        x.grad = None
        torch.manual_seed(3)
        results.append(outputs_and_gradients(module, x))
    assert_same_values(results[1], results[0])


@each_layer
def test_a_seed_repeats_and_a_fresh_draw_does_not(name, backend):
    _, ours = pair(name, 3, 4, num_layers=2, dropout=0.5)
    x = example()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ours(x)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(ours(x)[0], ours(x)[0])


@each_layer
def test_eval_draws_nothing(name, backend):
    _, ours = pair(name, 3, 4, num_layers=2, dropout=0.5)
    ours.eval()
    x = example()
    before = torch.get_rng_state()
    assert torch.equal(ours(x)[0], ours(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


@each_layer
def test_all_dropped_is_what_a_zero_input_gives_the_last_layer(name, backend):
    _, ours = pair(name, 3, 4, num_layers=2, dropout=1.0)
    output, _ = ours(example())
    last = pair(name, 4, 4)[1]
    last.load_state_dict({key[:-1] + "0": value for key, value in ours.state_dict().items() if key.endswith("l1")})
    assert_same_values(output, last(torch.zeros(6, 5, 4, dtype=torch.float64))[0])


@each_layer
def test_one_layer_is_never_dropped(name, backend):
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        _, ours = pair(name, 3, 4, dropout=0.9)
    x = example()
    assert torch.equal(ours(x)[0], ours(x)[0])
    assert (ours(x)[0] != 0).all()


@each_layer
def test_the_probability_may_be_changed_at_run_time(name, backend):
    torchs, ours = pair(name, 3, 4, num_layers=2, dropout=0.5)
    x = example()
    for module in (torchs, ours):
        module.dropout = 0.0
    assert_same_call(torchs, ours, x)
    results = []
    for module in (torchs, ours):
        module.dropout = 0.25
        torch.manual_seed(9)
        results.append(module(x)[0])
    assert_same_values(results[1], results[0])


@each_layer
def test_a_probability_outside_the_range_is_refused_when_it_would_be_used(name, backend):
    torchs, ours = pair(name, 3, 4, num_layers=2, dropout=0.5)
    for module in (torchs, ours):
        module.dropout = 1.5
        with pytest.raises(RuntimeError, match=r"dropout probability has to be between 0 and 1, but got 1\.5"):
            module(example())
        module.eval()(example())


@each_layer
def test_the_dropped_fraction_is_the_probability(name, backend):
    """A second layer that copies its input's sign into its candidate shows which of its inputs were zeroed."""
    p, width = 0.3, 64
    _, ours = pair(name, 3, width, num_layers=2, dropout=p)
    gates = 4 if name == "LSTM" else 3
    candidate = 2 * width
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.endswith("l1"):
                parameter.zero_()
        ours.weight_ih_l1[candidate : candidate + width] = torch.eye(width)
        assert ours.weight_ih_l1.shape == (gates * width, width)
        output = ours(torch.randn(1, 400, 3, dtype=torch.float64))[0]
    n = output.numel()
    fraction = (output == 0).double().mean().item()
    assert abs(fraction - p) < 5 * (p * (1 - p) / n) ** 0.5  # five standard deviations


@each_layer
def test_checkpointing_repeats_the_same_dropout(name, backend):
    _, ours = pair(name, 3, 4, num_layers=2, dropout=0.5)
    x, gradients = example(), []
    for run in (ours, lambda x: checkpoint(ours, x, use_reentrant=False)):
        ours.zero_grad()
        torch.manual_seed(11)
        run(x)[0].sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    assert_same_values(gradients[1], gradients[0])
