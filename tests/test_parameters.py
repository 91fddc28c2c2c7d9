"""Parameters: drawn, named, saved, moved, shared and replaced as torch.nn's, and always the current ones are used."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from pairs import CLASSES, LAYERS, assert_same_call, assert_same_values, pair
from torch import nn

import rnnkernels

CONFIGURATIONS = [
    (name, dict(num_layers=num_layers, bias=bias, bidirectional=bidirectional) | ({"proj_size": 2} if proj else {}))
    for name, num_layers, bias, bidirectional, proj in itertools.product(
        LAYERS, (1, 2), (True, False), (False, True), (False, True)
    )
    if name == "LSTM" or not proj
] + [(name, dict(bias=bias)) for name in ("LSTMCell", "GRUCell") for bias in (True, False)]

each_configuration = pytest.mark.parametrize("name, options", CONFIGURATIONS, ids=str)
each_class = pytest.mark.parametrize("name", CLASSES)
each_layer = pytest.mark.parametrize("name", LAYERS)


def small(name: str, **options) -> nn.Module:
    return getattr(rnnkernels, name)(3, 4, **options)


def result(module: nn.Module, input: torch.Tensor | None = None) -> object:
    dtype = next(module.parameters()).dtype
    with torch.no_grad():
        return module(torch.linspace(-1, 1, 15).view(5, 3).to(dtype) if input is None else input)


# --- drawing and naming --------------------------------------------------------------------------------------------------


@each_configuration
def test_the_same_seed_gives_torch_nns_parameters_in_its_order(name, options):
    torchs, ours = pair(name, 3, 4, **options)
    for (torch_name, expected), (own_name, parameter) in zip(torchs.named_parameters(), ours.named_parameters(), strict=True):
        assert own_name == torch_name
        assert torch.equal(parameter, expected)
        assert type(parameter) is nn.Parameter


@each_class
def test_drawing_leaves_the_random_state_where_torch_nn_leaves_it(name):
    pair(name, 3, 4)
    torch.manual_seed(0)
    getattr(nn, name)(3, 4)
    expected = torch.rand(1)
    torch.manual_seed(0)
    small(name)
    assert torch.equal(torch.rand(1), expected)


@each_class
def test_reset_parameters_draws_again(name):
    torchs, ours = pair(name, 3, 4)
    for module in (torchs, ours):
        torch.manual_seed(7)
        module.reset_parameters()
    assert_same_values(dict(ours.state_dict()), dict(torchs.state_dict()))


def test_a_cell_without_biases_registers_them_as_none():
    cell = small("LSTMCell", bias=False)
    assert cell.bias_ih is None and cell.bias_hh is None
    assert list(cell._parameters) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


# --- state_dict ----------------------------------------------------------------------------------------------------------


@each_configuration
def test_a_state_dict_moves_both_ways_strictly(name, options):
    torchs, ours = pair(name, 3, 4, **options)
    other_torchs, other_ours = pair(name, 3, 4, seed=1, **options)
    ours.load_state_dict(other_torchs.state_dict(), strict=True)
    torchs.load_state_dict(other_ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert ours.state_dict()._metadata == torchs.state_dict()._metadata
    assert_same_values(result(ours), result(other_torchs))


@each_class
def test_loading_an_unfitting_state_dict_fails_as_torch_nns(name):
    torchs, ours = pair(name, 3, 4)
    state = getattr(nn, name)(3, 5).state_dict()
    with pytest.raises(RuntimeError) as expected:
        torchs.load_state_dict(state)
    with pytest.raises(RuntimeError) as raised:
        ours.load_state_dict(state)
    assert str(raised.value) == str(expected.value)


@each_class
def test_load_state_dict_with_assign_uses_the_assigned_tensors(name):
    source = small(name)
    with torch.device("meta"):
        ours = small(name)
    assert all(p.is_meta for p in ours.parameters())
    state = source.state_dict()
    ours.load_state_dict(state, assign=True)
    assert all(p.data_ptr() == state[key].data_ptr() for key, p in ours.named_parameters())
    assert_same_values(result(ours), result(source))


# --- copies and pickles --------------------------------------------------------------------------------------------------


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@each_configuration
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded, copy.copy])
def test_copies_are_complete_and_computes_alike(name, options, duplicate):
    module = small(name, **options).eval()
    twin = duplicate(module)
    assert type(twin) is type(module) and repr(twin) == repr(module) and not twin.training
    assert list(twin.state_dict()) == list(module.state_dict())
    assert_same_values(result(twin), result(module))
    for attribute in ("_flat_weights_names", "_all_weights"):
        assert getattr(twin, attribute, None) == getattr(module, attribute, None)


@each_class
def test_a_deep_copy_has_parameters_of_its_own(name):
    module = small(name)
    before = result(module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same_values(result(module), before)
    assert not torch.equal(result(twin)[0], before[0])


@each_layer
def test_a_pickle_holds_each_parameter_once(name):
    module = small(name)
    assert len(module.__reduce_ex__(2)[2].keys() & {"_flat_weights", "_flat_weight_refs"}) == 0


#: What torch 1.7 wrote for a module: no proj_size, no weak references, the hooks of its time.
MODULE_FIELDS_OF_1_7 = (
    "training _parameters _buffers _non_persistent_buffers_set _backward_hooks _forward_hooks _forward_pre_hooks "
    "_state_dict_hooks _load_state_dict_pre_hooks _modules mode input_size hidden_size num_layers bias batch_first dropout "
    "bidirectional _flat_weights_names _all_weights _flat_weights"
).split()


def state_of_torch_1_7(module: nn.Module) -> dict:
    return {field: module.__dict__[field] for field in MODULE_FIELDS_OF_1_7}


def state_of_torch_0_4(module: nn.Module) -> dict:
    state = state_of_torch_1_7(module)
    for later in ("_flat_weights_names", "_flat_weights", "_all_weights", "_non_persistent_buffers_set"):
        del state[later]
    return state | {"all_weights": [list(weights) for weights in module.all_weights]}


class Pickled:
    """Pickles as an instance of ``cls`` with the given state, as nn.Module does."""

    def __init__(self, cls: type, state: dict) -> None:
        self.cls, self.state = cls, state

    def __reduce__(self):
        return object.__new__, (self.cls,), self.state


@each_layer
@pytest.mark.parametrize("old_state", [state_of_torch_1_7, state_of_torch_0_4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pickle_from_before_projections_loads_and_computes(name, old_state, bias):
    torchs = getattr(nn, name)(3, 4, num_layers=2, bidirectional=True, bias=bias)
    state = old_state(torchs)
    for cls in (getattr(nn, name), getattr(rnnkernels, name)):
        loaded = pickle.loads(pickle.dumps(Pickled(cls, state)))
        rnnkernels.replace_rnn_modules(loaded)
        assert type(loaded) is getattr(rnnkernels, name)
        assert loaded.proj_size == 0
        assert loaded._flat_weights_names == torchs._flat_weights_names
        assert_same_values(result(loaded), result(torchs))


# --- moves ---------------------------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_to_another_dtype_moves_every_parameter_and_computes_in_it(name, dtype, backend):
    module = small(name).to(dtype)
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert {t.dtype for t in torch.utils._pytree.tree_leaves(result(module))} == {dtype}


@each_class
def test_to_empty_brings_a_meta_module_to_a_device(name):
    source = small(name)
    module = small(name, device="meta").to_empty(device="cpu")
    module.load_state_dict(source.state_dict())
    assert_same_values(result(module), result(source))


@each_class
def test_a_meta_module_computes_shapes(name, backend):
    module = small(name, device="meta")
    results = torch.utils._pytree.tree_leaves(module(torch.empty(5, 3, device="meta")))
    expected = torch.utils._pytree.tree_leaves(small(name)(torch.zeros(5, 3)))
    assert all(r.is_meta for r in results)
    assert [r.shape for r in results] == [e.shape for e in expected]


@each_class
def test_share_memory_shares_what_is_computed_with(name):
    module = small(name).share_memory()
    assert all(p.is_shared() for p in module.parameters())
    result(module)


@each_class
@pytest.mark.parametrize("swap", [False, True])
def test_moves_may_replace_parameters(name, swap):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        torchs, ours = pair(name, 3, 4, dtype=torch.float32)
        assert_same_values(result(ours.double()), result(torchs.double()))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        torch.__future__.set_swap_module_params_on_conversion(False)


# --- the current weights are used ----------------------------------------------------------------------------------------


def weight_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@each_configuration
def test_every_reassigned_parameter_is_used(name, options, backend):
    _, ours = pair(name, 3, 4, **options)
    torchs, _ = pair(name, 3, 4, seed=1, **options)
    for weight in weight_names(ours):
        setattr(ours, weight, nn.Parameter(getattr(torchs, weight).detach().clone()))
    assert_same_call(torchs, ours, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


@each_class
def test_a_deleted_parameter_may_be_computed_instead(name):
    torchs, ours = pair(name, 3, 4)
    weight = weight_names(ours)[0]
    root = nn.Parameter(getattr(ours, weight).detach() / 2)
    delattr(ours, weight)
    setattr(ours, weight, 2 * root)
    assert_same_values(result(ours), result(torchs))
    ours(torch.randn(5, 3, dtype=torch.float64))[0].sum().backward()
    assert root.grad.abs().sum() > 0


@each_layer
def test_a_deleted_parameter_is_missed_by_name(name):
    module = small(name)
    del module.weight_hh_l0
    module.double()
    with pytest.raises(AttributeError, match="weight_hh_l0"):
        result(module)


@each_class
def test_changing_a_parameter_in_place_changes_the_result(name):
    module = small(name)
    before = result(module)
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    assert not torch.equal(result(module)[0], before[0])
    next(module.parameters()).data = torch.zeros_like(next(module.parameters()))
    assert not torch.equal(result(module)[0], before[0])


@each_class
def test_tied_weights_get_the_sum_of_their_gradients(name, backend):
    torchs, ours = pair(name, 4, 4)
    for module in (torchs, ours):
        first, second = weight_names(module)[:2]
        setattr(module, second, getattr(module, first))
        assert len(list(module.parameters())) == 3
    assert_same_call(torchs, ours, torch.randn(5, 4, dtype=torch.float64, requires_grad=True))


@each_class
def test_an_optimizer_trains_as_it_trains_torch_nns(name, backend):
    torchs, ours = pair(name, 3, 4)
    x = torch.randn(5, 3, dtype=torch.float64)
    for module in (torchs, ours):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x)[0].pow(2).sum().backward()
            optimizer.step()
    assert_same_values(dict(ours.state_dict()), dict(torchs.state_dict()))


# --- attributes other people's code touches ------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("options", [{}, dict(num_layers=2, bidirectional=True, bias=False)], ids=str)
def test_weight_lists_are_named_and_ordered_as_torch_nns(name, options):
    torchs, ours = pair(name, 3, 4, **options)
    assert ours._flat_weights_names == torchs._flat_weights_names
    assert ours._all_weights == torchs._all_weights
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert [[tuple(w.shape) for w in ws] for ws in ours.all_weights] == [
        [tuple(w.shape) for w in ws] for ws in torchs.all_weights
    ]
    assert all(ref() is p for ref, p in zip(ours._flat_weight_refs, ours.parameters(), strict=True))


@each_layer
def test_flat_weights_follow_the_parameters(name):
    module = small(name)
    replacement = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    module.weight_hh_l0 = replacement
    assert module._flat_weights[1] is replacement
    del module.weight_hh_l0
    assert module._flat_weights[1] is None
    assert module._flat_weight_refs[1] is None


@each_layer
def test_assigning_flat_weights_assigns_the_parameters(name):
    source, module = small(name), small(name)
    module._flat_weights = [nn.Parameter(w.detach().clone()) for w in source._flat_weights]
    assert_same_values(result(module), result(source))


@each_layer
def test_flatten_parameters_does_nothing_and_nothing_warns(name, recwarn):
    module = small(name, num_layers=2)
    pointers = [p.data_ptr() for p in module.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.flatten_parameters() is None
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().clone())
        result(module)
    assert module.weight_ih_l0.data_ptr() == pointers[0] and module.weight_hh_l0.data_ptr() not in pointers


@each_layer
def test_a_data_parallel_replica_uses_the_tensors_set_on_it(name):
    module = small(name)
    replica = module._replicate_for_data_parallel()
    assert list(replica.parameters()) == []
    copies = {key: 2 * p for key, p in module.named_parameters()}  # what torch's Broadcast makes: not leaves
    for key, tensor in copies.items():
        setattr(replica, key, tensor)
    expected = small(name)
    expected.load_state_dict(copies)
    x = torch.ones(5, 3)
    assert_same_values(replica(x), expected(x))
    replica(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@each_layer
def test_check_methods_use_the_current_weights(name):
    module = small(name)
    for key, parameter in module.named_parameters():
        setattr(module, key, nn.Parameter(parameter.detach().double()))
    module.check_input(torch.zeros(5, 2, 3, dtype=torch.float64), None)
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float32\) does not match weight dtype \(torch.float64\)"):
        module.check_input(torch.zeros(5, 2, 3), None)


@each_layer
def test_permute_hidden_and_expected_sizes_are_torch_nns(name):
    torchs, ours = pair(name, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
    x, batch_sizes = torch.zeros(2, 5, 3), torch.tensor([3, 2])
    for method in ("get_expected_hidden_size", *(["get_expected_cell_size"] if name == "LSTM" else [])):
        for arguments in ((x, None), (x[0], batch_sizes)):
            assert getattr(ours, method)(*arguments) == getattr(torchs, method)(*arguments)
    h = torch.arange(6.0).view(1, 3, 2)
    hx, order = ((h, -h) if name == "LSTM" else h), torch.tensor([2, 0, 1])
    assert_same_values(ours.permute_hidden(hx, order), torchs.permute_hidden(hx, order))
    assert ours.permute_hidden(hx, None) is hx
