"""replace_rnn_modules: in place, nothing lost, nothing doubled, reported, and taken back."""

import copy
import pickle

import pytest
import torch
from pairs import CLASSES, LAYERS, assert_same_values
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnkernels
from rnnkernels import replace_rnn_modules, restore_rnn_modules

each_class = pytest.mark.parametrize("name", CLASSES)
each_layer = pytest.mark.parametrize("name", LAYERS)


class Model(nn.Module):
    """Every class once, one of them twice, among other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 3)
        self.lstm = nn.LSTM(3, 4, 2, dropout=0.2)
        self.inner = nn.ModuleDict({"gru": nn.GRU(4, 4, bidirectional=True), "cell": nn.LSTMCell(8, 4)})
        self.gru_cell = nn.GRUCell(4, 4)
        self.again = self.lstm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.again(self.embed(x))[0]
        y = self.inner["gru"](y)[0]
        h = c = None
        for step in y:
            h, c = self.inner["cell"](step, None if h is None else (h, c))
        return self.gru_cell(h)


def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def example() -> torch.Tensor:
    return torch.linspace(-1, 1, 30, dtype=torch.float64).view(5, 2, 3)


def test_every_class_is_replaced_wherever_it_is():
    m = model()
    report = replace_rnn_modules(m)
    assert type(m.lstm) is rnnkernels.LSTM and m.again is m.lstm
    assert type(m.inner["gru"]) is rnnkernels.GRU
    assert type(m.inner["cell"]) is rnnkernels.LSTMCell
    assert type(m.gru_cell) is rnnkernels.GRUCell
    assert report.model is m
    assert [entry.names for entry in report.replaced] == [("lstm", "again"), ("inner.gru",), ("inner.cell",), ("gru_cell",)]
    assert report.skipped == ()


def test_a_second_call_finds_nothing_to_do():
    m = model()
    replace_rnn_modules(m)
    assert replace_rnn_modules(m).entries == ()


def test_parameters_buffers_names_and_flags_are_the_same_objects():
    m = model()
    m.lstm.eval()
    m.lstm.weight_hh_l0.requires_grad_(False)
    m.lstm.register_buffer("extra", torch.ones(2))
    m.lstm.note = "kept"
    before, training = dict(m.named_parameters()), [module.training for module in m.modules()]
    replace_rnn_modules(m)
    after = dict(m.named_parameters())
    assert list(after) == list(before) and all(after[key] is before[key] for key in before)
    assert [module.training for module in m.modules()] == training
    assert not m.lstm.weight_hh_l0.requires_grad
    assert torch.equal(m.lstm.extra, torch.ones(2)) and m.lstm.note == "kept"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_goes_on_with_the_same_optimizer_and_the_same_numbers(optimizer, backend):
    losses = []
    for replace in (False, True):
        m = model()
        steps = optimizer(m.parameters(), lr=0.05)
        own = []
        for step in range(6):
            if replace and step == 3:
                replace_rnn_modules(m)
            torch.manual_seed(step)
            loss = m(example()).pow(2).mean()
            steps.zero_grad()
            loss.backward()
            steps.step()
            own.append(loss.detach())
        losses.append((torch.stack(own), dict(m.state_dict())))
    assert_same_values(losses[1], losses[0])


@each_class
def test_the_model_itself_may_be_replaced(name):
    module = getattr(nn, name)(3, 4)
    report = replace_rnn_modules(module)
    assert type(module) is getattr(rnnkernels, name)
    assert report.model is module
    assert report.replaced[0].names == ("",)
    assert str(report.replaced[0]) == f"(the model itself): torch.nn.{name} -> rnnkernels.{name}"


def test_hooks_of_every_kind_stay():
    m, calls = model(), []
    lstm = m.lstm
    lstm.register_forward_pre_hook(lambda module, args: calls.append("forward pre"))
    lstm.register_forward_hook(lambda module, args, result: calls.append("forward"))
    lstm.register_full_backward_pre_hook(lambda module, grads: calls.append("backward pre"))
    lstm.register_full_backward_hook(lambda module, grads_in, grads_out: calls.append("backward"))
    lstm.register_state_dict_pre_hook(lambda module, prefix, keep: calls.append("state_dict pre"))
    lstm.register_state_dict_post_hook(lambda module, state, prefix, metadata: calls.append("state_dict"))
    lstm.register_load_state_dict_pre_hook(lambda *args: calls.append("load pre"))
    lstm.register_load_state_dict_post_hook(lambda module, keys: calls.append("load"))
    lstm.weight_hh_l0.register_hook(lambda grad: calls.append("tensor"))
    replace_rnn_modules(m)
    m(example().requires_grad_()).sum().backward()
    m.load_state_dict(m.state_dict())
    kinds = {"forward pre", "forward", "backward pre", "backward", "state_dict pre", "state_dict", "load pre", "load", "tensor"}
    assert set(calls) == kinds


@each_layer
def test_references_held_elsewhere_see_the_new_class(name):
    module = getattr(nn, name)(3, 4)
    outside, bound = [module], module.forward
    replace_rnn_modules(nn.Sequential(module))
    assert type(outside[0]) is getattr(rnnkernels, name)
    assert bound.__self__ is module


@each_class
def test_parametrizations_stay_and_take_effect(name, backend):
    torchs = getattr(nn, name)(3, 4, dtype=torch.float64)
    weight = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    parametrizations.weight_norm(torchs, weight)
    ours = copy.deepcopy(torchs)
    report = replace_rnn_modules(ours)
    assert [entry.after for entry in report.entries] == [getattr(rnnkernels, name)]
    assert isinstance(ours, getattr(rnnkernels, name)) and type(ours).__name__ == f"Parametrized{name}"
    assert type(torchs).__mro__[1] is getattr(nn, name)  # the copy's class is its own
    assert parametrize.is_parametrized(ours, weight)
    x = torch.randn(5, 3, dtype=torch.float64)
    for module in (torchs, ours):
        module(x)[0].sum().backward()
    assert_same_values(ours(x), torchs(x))
    assert_same_values([p.grad for p in ours.parameters()], [p.grad for p in torchs.parameters()])
    assert_same_values(copy.deepcopy(ours)(x), torchs(x))
    report.undo()
    assert isinstance(ours, getattr(nn, name))
    assert_same_values(ours(x), torchs(x))
    parametrize.remove_parametrizations(ours, weight)
    assert type(ours) is getattr(nn, name)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
@each_layer
def test_weight_norm_hooks_and_pruning_stay_and_take_effect(name, backend):
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(getattr(nn, name)(3, 4, dtype=torch.float64))
        nn.utils.weight_norm(modules[-1], "weight_hh_l0")
        prune.l1_unstructured(modules[-1], "weight_ih_l0", amount=0.3)
    torchs, ours = modules
    replace_rnn_modules(ours)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert_same_values(ours(x), torchs(x))
    with torch.no_grad():
        for module in (torchs, ours):
            module.weight_hh_l0_g.mul_(2)
    assert_same_values(ours(x), torchs(x))


# --- what is left alone --------------------------------------------------------------------------------------------------


class Mine(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class MyCell(nn.GRUCell):
    pass


def reasons(m: nn.Module, **options) -> dict[str, str]:
    return {entry.names[0]: entry.reason for entry in replace_rnn_modules(m, **options).skipped}


def test_subclasses_are_left_alone_with_the_reason():
    m = nn.ModuleDict({"mine": Mine(3, 4), "cell": MyCell(3, 4), "rnn": nn.RNN(3, 4), "rnn_cell": nn.RNNCell(3, 4)})
    assert reasons(m) == {
        "mine": "a subclass of torch.nn.LSTM may depend on what it overrides",
        "cell": "a subclass of torch.nn.GRUCell may depend on what it overrides",
        "rnn": "there is nothing to replace a torch.nn.RNN with",
        "rnn_cell": "there is nothing to replace a torch.nn.RNNCell with",
    }
    assert [type(module) for module in m.values()] == [Mine, MyCell, nn.RNN, nn.RNNCell]


def test_a_parametrized_subclass_is_left_alone_too():
    m = nn.ModuleDict({"mine": Mine(3, 4)})
    parametrizations.weight_norm(m["mine"], "weight_hh_l0")
    assert reasons(m) == {"mine": "a subclass of torch.nn.LSTM may depend on what it overrides"}


def test_a_forward_replaced_on_the_instance_is_left_alone():
    m = nn.ModuleDict({"patched": nn.LSTM(3, 4)})
    m["patched"].forward = lambda x: x
    assert reasons(m) == {"patched": "its forward was replaced on the instance"}


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_dtypes_no_backend_has_are_left_alone():
    m = nn.ModuleDict({"complex": nn.GRU(3, 4).to(torch.complex64)})
    assert reasons(m) == {"complex": "its weights are torch.complex64"}


def test_a_gru_with_a_projection_smuggled_in_is_left_alone():
    assert reasons(nn.GRU(3, 4, 1, True, False, 0.0, False, 2)) == {"": "a GRU has no projection"}


def test_the_filter_decides_by_name_and_module():
    m, asked = model(), []

    def accept(name: str, module: nn.Module) -> bool:
        asked.append((name, type(module)))
        return name.startswith("inner") or isinstance(module, nn.GRUCell)

    report = replace_rnn_modules(m, filter=accept)
    assert {entry.names[0] for entry in report.replaced} == {"inner.gru", "inner.cell", "gru_cell"}
    assert [(entry.names, entry.reason) for entry in report.skipped] == [(("lstm", "again"), "excluded by the filter")]
    assert type(m.lstm) is nn.LSTM
    assert ("inner.gru", nn.GRU) in asked and not any(kind is nn.Linear for _, kind in asked)


def test_a_module_with_two_names_is_replaced_only_if_both_are_accepted():
    for refused in ("lstm", "again"):
        m = model()
        replace_rnn_modules(m, filter=lambda name, module, refused=refused: name != refused)
        assert type(m.lstm) is nn.LSTM


def test_a_dry_run_reports_and_changes_nothing():
    m = model()
    report = replace_rnn_modules(m, dry_run=True)
    assert [type(module) for module in m.modules()] == [type(module) for module in model().modules()]
    assert len(report.replaced) == 4
    assert str(report).startswith("would replace 4 of 4 recurrent modules\n")
    report.undo()
    assert type(m.lstm) is nn.LSTM


# --- back ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [lambda report: report.undo(), lambda report: restore_rnn_modules(report.model)])
def test_undoing_gives_torch_nns_classes_with_the_current_parameters(back):
    m = model()
    report = replace_rnn_modules(m)
    m.lstm.weight_hh_l0 = nn.Parameter(torch.zeros_like(m.lstm.weight_hh_l0))
    m.eval()
    expected = m(example())
    back(report)
    assert [type(module) for module in m.modules()] == [type(module) for module in model().modules()]
    assert all(a is b for a, b in zip(m.lstm._flat_weights, m.lstm.parameters(), strict=True))
    assert_same_values(m(example()), expected)
    pickle.loads(pickle.dumps(m))


def test_undoing_leaves_alone_what_was_changed_since():
    m = model()
    report = replace_rnn_modules(m)
    restore_rnn_modules(m, filter=lambda name, module: name == "gru_cell")
    assert type(m.gru_cell) is nn.GRUCell and type(m.inner["cell"]) is rnnkernels.LSTMCell
    report.undo()
    report.undo()
    assert type(m.gru_cell) is nn.GRUCell and type(m.lstm) is nn.LSTM


def test_restoring_reports_too():
    report = restore_rnn_modules(rnnkernels.GRU(3, 4))
    assert str(report) == "replaced 1 of 1 recurrent modules\n  (the model itself): rnnkernels.GRU -> torch.nn.GRU"


def test_the_report_reads_well():
    m = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": Mine(3, 4)})
    m["c"] = m["a"]
    assert str(replace_rnn_modules(m)) == (
        "replaced 1 of 2 recurrent modules\n"
        "  a, c: torch.nn.LSTM -> rnnkernels.LSTM\n"
        "  b: test_convert.Mine: a subclass of torch.nn.LSTM may depend on what it overrides"
    )
    assert str(replace_rnn_modules(nn.Linear(2, 2))) == "no recurrent modules to replace"


@each_class
def test_a_replaced_module_pickles_as_ours(name):
    module = getattr(nn, name)(3, 4)
    replace_rnn_modules(module)
    loaded = pickle.loads(pickle.dumps(module))
    assert type(loaded) is getattr(rnnkernels, name)
    x = torch.randn(5, 3)
    assert_same_values(loaded(x), module(x))
