"""Calls that are recorded for backward, by Functions in C++ or in Python (:func:`rnnkernels.autograd.record`): the same results,
gradients, saved tensors and errors from either, and Python's wherever Python has a say."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from modes import Nothing, Watching
from pairs import CLASSES, states, tensors
from torch._dynamo import compiled_autograd
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import rnnkernels
from rnnkernels import _library, autograd, direct

pytestmark = pytest.mark.usefixtures("native_library")


def recorder(result) -> str:
    """Who recorded a module's result: "C++" or "Python"."""
    seen, todo = set(), [tensor.grad_fn for tensor in tensors(result)]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return "Python"
        if "rnnkernels::" in node.name():
            return "C++"
        todo.extend(before for before, _ in node.next_functions)
    raise AssertionError("the result was not recorded")


def module_and_input(name: str, batch: int = 3, **options):
    module = getattr(rnnkernels, name)(5, 7, dtype=torch.float64, **options)
    x = torch.randn(*(() if "Cell" in name else (4,)), batch, 5, dtype=torch.float64, requires_grad=True)
    return module, x


def gradients(module, x, hx, result):
    """Of everything that a module returned, with respect to all that went in."""
    inputs = [x, *tensors(hx), *module.parameters()]
    return torch.autograd.grad(tensors(result), inputs, weightings(result))


def weightings(result) -> list[torch.Tensor]:
    """A gradient for each tensor of a module's result."""
    return [torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view_as(tensor) for tensor in tensors(result)]


def assert_recorded_alike(module, x, hx, call):
    results, grads = [], []
    for who in ("C++", "Python"):
        if who == "C++":
            result = call()
        else:
            with Nothing():
                result = call()
        assert recorder(result) == who
        results.append(tensors(result))
        grads.append(gradients(module, x, hx, result))
    for ours, expected in ((results[0], results[1]), (grads[0], grads[1])):
        assert len(ours) == len(expected)
        assert all(map(torch.equal, ours, expected))


def test_it_is_there_if_the_library_is() -> None:
    assert autograd.reason is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_results_and_gradients_are_those_of_the_functions_in_python(backend: str, name: str, bias: bool) -> None:
    module, x = module_and_input(name, bias=bias)
    for hx in (None, states(module, 3)):
        assert_recorded_alike(module, x, hx, lambda hx=hx: module(x, hx))


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 2, "batch_first": True}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_layers_of_every_kind(name: str, options: dict) -> None:
    if name == "GRU" and "proj_size" in options:
        pytest.skip("a GRU has no projection")
    module, x = module_and_input(name, **options)
    hx = states(module, 4 if module.batch_first else 3)
    assert_recorded_alike(module, x, hx, lambda: module(x, hx))
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)

    def packed():
        output, final = module(pack_padded_sequence(x, [4, 1, 2], batch_first=True, enforce_sorted=False))
        return output.data, final

    assert_recorded_alike(module, x, None, packed)


@pytest.mark.parametrize("name", CLASSES)
def test_only_what_is_asked_for_gets_a_gradient(name: str) -> None:
    module, x = module_and_input(name)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    result = tensors(module(x))[0].sum()
    assert recorder(result) == "C++"
    result.backward()
    assert x.grad is not None and all(parameter.grad is None for parameter in module.parameters())
    module.weight_hh.requires_grad_() if "Cell" in name else module.weight_hh_l0.requires_grad_()
    tensors(module(x.detach()))[0].sum().backward()
    assert sum(parameter.grad is not None for parameter in module.parameters()) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_can_be_differentiated_and_computed_in_batches(name: str) -> None:
    module, x = module_and_input(name)
    hx = states(module, 3)
    inputs = (x, *tensors(hx))

    def function(x, *states):
        return tuple(tensors(module(x, states if len(states) == 2 else states[0])))

    assert recorder(function(*inputs)) == "C++"
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("name", "proj_size"), [("LSTM", 0), ("LSTM", 3), ("GRU", 0)])
def test_batches_of_gradients_of_each_result_alone(name: str, proj_size: int, steps: int) -> None:
    module, x = module_and_input(name, **({"proj_size": proj_size} if proj_size else {}))
    x = x[:steps].detach().requires_grad_()
    inputs = [x, *module.parameters()]
    for result in tensors(module(x)):
        options = {"retain_graph": True, "allow_unused": True}
        directions = torch.randn(5, *result.shape, dtype=result.dtype)
        batched = torch.autograd.grad(result, inputs, directions, is_grads_batched=True, **options)
        for i, direction in enumerate(directions):
            for own, grad in zip(batched, torch.autograd.grad(result, inputs, direction, **options), strict=True):
                # None: the result does not depend on that input, as c_n after one step does not on a projection.
                torch.testing.assert_close(torch.zeros_like(grad) if own is None else own[i], grad)


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_may_be_mapped_over(name: str) -> None:
    module, x = module_and_input(name)
    result = tensors(module(x))[0]
    assert recorder(result) == "C++"
    directions = torch.randn(3, *result.shape, dtype=result.dtype)

    def gradient(direction):
        return torch.autograd.grad(result, x, direction, retain_graph=True)[0]

    torch.testing.assert_close(torch.func.vmap(gradient)(directions), torch.stack([gradient(d) for d in directions]))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_layers_below_the_first_that_learns_keep_nothing(name: str) -> None:
    module, x = module_and_input(name, num_layers=3, bidirectional=True)
    for parameter, label in ((p, label) for label, p in module.named_parameters()):
        parameter.requires_grad_("_l2" in label)
    x = x.detach()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = module(x)
    assert recorder(result) == "C++"
    assert sum(t.dim() == 5 for t in kept) == 1, "gates (directions, steps, batch, 4, H) of one layer"
    learning = [p for p in module.parameters() if p.requires_grad]
    with Nothing():
        expected = module(x)
    ours, theirs = (torch.autograd.grad(tensors(r), learning, weightings(r)) for r in (result, expected))
    assert all(map(torch.equal, [*tensors(result), *ours], [*tensors(expected), *theirs]))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_dropout_draws_what_it_draws_in_python(name: str) -> None:
    module, x = module_and_input(name, num_layers=3, dropout=0.5)
    results, draws = [], []
    for mode in (nullcontext, Nothing):
        torch.manual_seed(3)
        with mode():
            results.append(module(x)[0])
        draws.append(torch.rand(1))
    assert [recorder(result) for result in results] == ["C++", "Python"]
    assert torch.equal(*results) and torch.equal(*draws)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_tensors_are_saved_in_the_same_order(name: str) -> None:
    """So that activation checkpointing may record a call by one and compute it again by the other."""
    module, x = module_and_input(name)
    hx = states(module, 3)
    saved: dict[str, list] = {"C++": [], "Python": []}
    for who in saved:
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=saved[who]: kept.append(t) or t, lambda t: t):
            if who == "C++":
                result = module(x, hx)
            else:
                with Nothing():
                    result = module(x, hx)
        assert recorder(result) == who
        gradients(module, x, hx, result)
    assert len(saved["C++"]) == len(saved["Python"]) > 0
    assert all(map(torch.equal, saved["C++"], saved["Python"]))


def test_a_checkpoint_may_be_computed_again_by_the_other() -> None:
    module, x = module_and_input("LSTM")
    expected = gradients(module, x, None, module(x)[0])
    result = checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    with Nothing():
        again = gradients(module, x, None, result)
    assert all(map(torch.equal, expected, again))


def test_errors_are_autograds_own() -> None:
    module, x = module_and_input("LSTM")
    result = module(x)[0]
    assert recorder(result) == "C++"
    result.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.sum().backward()
    output = module(x)[0]
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    cell, x = module_and_input("GRUCell")
    cell(x).mul_(2).sum().backward()  # what a cell returns is not needed again

    def refuse(_):
        raise KeyError("not to be saved")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda t: t), pytest.raises(KeyError, match="not to be saved"):
        module(torch.randn(4, 3, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"h0 must have shape \(1, 3, 7\), got \(1, 3, 6\)"):
        arguments = ("lstm", "", (True, False, False), None, torch.randn(4, 3, 5), [torch.randn(1, 3, 6), torch.randn(1, 3, 7)])
        autograd.record(*arguments, list(module.float().parameters()))
    with pytest.raises(RuntimeError, match="Could not find schema for rnnkernels::no_such_lstm_forward"):
        autograd.record("lstm", "no_such_", *arguments[2:], list(module.parameters()))


def test_a_graph_is_freed_with_what_it_holds() -> None:
    module, x = module_and_input("LSTM")
    output = module(x)[0]
    alive = weakref.ref(output)
    del output
    assert alive() is None, "a node holds the output that it made, which holds the node"
    output = module(x)[0]
    alive = weakref.ref(output)
    output.sum().backward()
    del output
    gc.collect()
    assert alive() is None


def test_subclasses_see_the_operators() -> None:
    seen = []

    class Tagged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    module, x = module_and_input("GRU")
    result = module(x.detach().as_subclass(Tagged))[0]
    assert recorder(result) == "Python"
    assert torch.ops.rnnkernels.gru_forward.default in seen
    result.sum().backward()
    assert module.weight_ih_l0.grad is not None


def test_a_dispatch_mode_and_the_profiler_see_both_operators() -> None:
    module, x = module_and_input("GRU")
    with Watching() as mode:
        result = module(x)[0]
        assert recorder(result) == "C++"
        result.sum().backward()
    assert {"rnnkernels.gru_forward.default", "rnnkernels.gru_backward.default"} <= set(mode.seen)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x)[0].sum().backward()
    assert {"rnnkernels::gru_forward", "rnnkernels::gru_backward"} <= {event.key for event in profile.key_averages()}


def test_autocast_does_not_reach_backward() -> None:
    module, x = module_and_input("LSTM")
    module, x = module.float(), x.detach().float()
    result, weights = module(x)[0].sum(), list(module.parameters())
    assert recorder(result) == "C++"
    expected = torch.autograd.grad(result, weights, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        again = torch.autograd.grad(result, weights, retain_graph=True)
        batches = torch.autograd.grad(result, weights, torch.ones(2), retain_graph=True, is_grads_batched=True)
        differentiable = torch.autograd.grad(result, weights, create_graph=True)
        second = torch.autograd.grad(sum(grad.sum() for grad in differentiable), weights)
    assert all(map(torch.equal, expected, again))
    for batch, grad in zip(batches, expected, strict=True):
        torch.testing.assert_close(batch[1], grad)
    differentiable = torch.autograd.grad(module(x)[0].sum(), weights, create_graph=True)
    for own, grad in zip(second, torch.autograd.grad(sum(grad.sum() for grad in differentiable), weights), strict=True):
        torch.testing.assert_close(own, grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_backward_can_be_compiled() -> None:
    """Compiled autograd traces the nodes of an eager graph."""
    for name in CLASSES:
        module, x = module_and_input(name)
        expected = gradients(module, x, None, module(x))
        with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
            result = module(x)
            torch.autograd.backward(tensors(result), weightings(result))
        for grad, leaf in zip(expected, (x, *module.parameters()), strict=True):
            torch.testing.assert_close(leaf.grad, grad)


def test_without_them_pythons_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "_record", _library.declines)
    monkeypatch.setattr(direct, "layers", _library.declines)
    module, x = module_and_input("LSTM")
    assert recorder(module(x)) == "Python"
