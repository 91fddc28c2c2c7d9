"""Weights that something else computes: normalised, parametrized, pruned, or swapped in for one call."""

import copy

import pytest
import torch
from pairs import CELLS, CLASSES, assert_same_call, assert_same_values, pair
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

each_class = pytest.mark.parametrize("name", CLASSES)


def suffix(name: str) -> str:
    return "" if name in CELLS else "_l0"


def example() -> torch.Tensor:
    return torch.randn(5, 3, dtype=torch.float64, requires_grad=True)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def with_plain_weights(module: nn.Module, **weights: torch.Tensor) -> nn.Module:
    """A module of that class whose parameters are plain, with the values given or ``module``'s."""
    plain = type(module)(module.input_size, module.hidden_size, dtype=torch.float64)
    plain.load_state_dict(module.state_dict() | {key: value.detach() for key, value in weights.items()})
    return plain


@each_class
def test_a_parametrized_weight_is_used_as_it_is_at_each_call(name, backend):
    _, ours = pair(name, 3, 4)
    weight = "weight_ih" + suffix(name)
    doubled = with_plain_weights(ours, **{weight: 2 * getattr(ours, weight)})
    parametrize.register_parametrization(ours, weight, Doubled())
    x = example()
    assert_same_values(ours(x), doubled(x))

    with torch.no_grad():  # the stale weights of https://github.com/pytorch/pytorch/issues/65688
        getattr(ours.parametrizations, weight).original.mul_(3)
        getattr(doubled, weight).mul_(3)
    assert_same_values(ours(x), doubled(x))


@each_class
def test_gradients_reach_the_original_of_a_parametrized_weight(name, backend):
    _, ours = pair(name, 3, 4)
    weight = "weight_ih" + suffix(name)
    doubled = with_plain_weights(ours, **{weight: 2 * getattr(ours, weight)})
    parametrize.register_parametrization(ours, weight, Doubled())
    x = example()
    for module in (ours, doubled):
        module(x)[0].sum().backward()
    assert_same_values(getattr(ours.parametrizations, weight).original.grad, 2 * getattr(doubled, weight).grad)


@each_class
def test_parametrizations_can_be_cached_and_removed(name):
    _, ours = pair(name, 3, 4)
    weight = "weight_hh" + suffix(name)
    parametrize.register_parametrization(ours, weight, Doubled())
    x = example()
    expected = ours(x)
    with parametrize.cached():
        assert_same_values(ours(x), expected)
    parametrize.remove_parametrizations(ours, weight)
    assert_same_values(ours(x), expected)
    assert type(ours).__name__ == name and isinstance(getattr(ours, weight), nn.Parameter)


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm hook": nn.utils.weight_norm,
    "spectral_norm hook": nn.utils.spectral_norm,
}


@each_class
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")  # the hooks are deprecated, and in use
def test_training_normalised_weights_goes_as_with_plain_weights_computed_outside(name, norm, backend):
    """The module under the norm, against the same norm on a bare holder of the weight with the module called functionally."""
    _, ours = pair(name, 3, 4)
    weight = "weight_hh" + suffix(name)
    holder = nn.Module()
    holder.register_parameter(weight, nn.Parameter(getattr(ours, weight).detach().clone()))
    holder.forward = lambda: getattr(holder, weight)
    plain = copy.deepcopy(ours)
    for module in (ours, holder):
        torch.manual_seed(3)  # spectral_norm draws
        NORMS[norm](module, weight)
    state = torch.ones(5, 4, dtype=torch.float64) if name in CELLS else torch.ones(1, 4, dtype=torch.float64)
    hx = (state, state) if name.startswith("LSTM") else state
    x = example()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.5) for module in (ours, holder)]
    for _ in range(3):
        output = ours(x, hx)[0]
        expected = functional_call(plain, {weight: holder()}, (x, hx))[0]
        assert_same_values(output, expected)
        for optimizer, loss in zip(optimizers, (output, expected), strict=True):
            optimizer.zero_grad()
            loss.pow(2).sum().backward()
        trained = {key for key, _ in holder.named_parameters()}
        for key, parameter in ours.named_parameters():
            if key not in trained:
                parameter.grad = None
        for optimizer in optimizers:
            optimizer.step()


@each_class
def test_pruned_weights_are_masked_and_stay_masked_in_training(name, backend):
    torchs, ours = pair(name, 3, 4)
    weight = "weight_ih" + suffix(name)
    mask = (torch.arange(getattr(ours, weight).numel()) % 3 > 0).view_as(getattr(ours, weight))
    for module in (torchs, ours):
        prune.custom_from_mask(module, weight, mask)
    masked = with_plain_weights(pair(name, 3, 4)[1], **{weight: getattr(ours, weight + "_orig") * mask})
    x = example()
    assert_same_values(ours(x), masked(x))
    ours(x)[0].sum().backward()
    assert (getattr(ours, weight + "_orig").grad[~mask] == 0).all()
    prune.remove(ours, weight)
    assert_same_values(ours(x), masked(x))


@each_class
def test_functional_call_uses_the_given_weights_and_leaves_the_module_alone(name, backend):
    torchs, ours = pair(name, 3, 4)
    before = copy.deepcopy(ours)
    other, _ = pair(name, 3, 4, seed=1)
    x = example()
    swapped = {key: parameter.detach().clone().requires_grad_() for key, parameter in other.named_parameters()}
    output = functional_call(ours, swapped, (x,))
    assert_same_values(output, other(x))
    output[0].sum().backward()
    assert all(tensor.grad is not None for tensor in swapped.values())
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert_same_call(torchs, ours, x)
    assert_same_values(dict(ours.state_dict()), dict(before.state_dict()))


@each_class
def test_functional_call_may_swap_one_weight(name, backend):
    _, ours = pair(name, 3, 4)
    weight = "weight_ih" + suffix(name)
    zeroed = with_plain_weights(ours, **{weight: torch.zeros_like(getattr(ours, weight))})
    x = example()
    swapped = {weight: torch.zeros_like(getattr(ours, weight))}
    assert_same_values(functional_call(ours, swapped, (x,)), zeroed(x))


@each_class
def test_a_parametrized_module_moves_copies_and_saves(name):
    _, ours = pair(name, 3, 4)
    parametrizations.weight_norm(ours, "weight_ih" + suffix(name))
    x = example()
    expected = ours(x)
    assert_same_values(copy.deepcopy(ours)(x), expected)
    other = pair(name, 3, 4, seed=1)[1]
    parametrizations.weight_norm(other, "weight_ih" + suffix(name))
    other.load_state_dict(ours.state_dict())
    assert_same_values(other(x), expected)
    half = copy.deepcopy(ours).to(torch.bfloat16)
    assert half(x.to(torch.bfloat16))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_dropped_out_recurrent_weights_are_used(name, backend):
    """What weight-drop wrappers do: the parameter is taken out, and its thinned copy put in at every call."""
    torchs, ours = pair(name, 3, 4)
    raw = {}
    for module in (torchs, ours):
        raw[module] = nn.Parameter(module._parameters.pop("weight_hh_l0").detach().clone())
    x = example()
    for seed in range(2):
        results = []
        for module in (torchs, ours):
            torch.manual_seed(seed)
            module._parameters["weight_hh_l0"] = nn.functional.dropout(raw[module], 0.5)
            if module is torchs:
                module._init_flat_weights()  # torch.nn keeps a list that this refreshes
            results.append(module(x)[0])
        assert_same_values(results[1], results[0])
