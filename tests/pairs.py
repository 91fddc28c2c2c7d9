"""torch.nn's module beside ours: made with equal parameters, called alike, compared.

Values are compared in float64 with torch.testing's own tolerance for it (1e-7): these tests are about what a module does, and
test_numerics.py about how accurately.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnkernels

LAYERS = ("LSTM", "GRU")
CELLS = ("LSTMCell", "GRUCell")
CLASSES = LAYERS + CELLS


def pair(name: str, *args, seed: int = 0, dtype: torch.dtype = torch.float64, **kwargs) -> tuple[nn.Module, nn.Module]:
    """torch.nn's class of that name and ours, constructed alike, each after ``manual_seed(seed)``."""
    modules = []
    for package in (nn, rnnkernels):
        torch.manual_seed(seed)
        modules.append(getattr(package, name)(*args, dtype=dtype, **kwargs))
    return modules[0], modules[1]


def zeros(name: str, *shape: int, **kwargs) -> Tensor | tuple[Tensor, Tensor]:
    """Zero states in the form a module of that name takes: (h, c) or h."""
    state = torch.zeros(shape, **kwargs)
    return (state, state) if name.startswith("LSTM") else state


def states(module: nn.Module, batch: int | None) -> Tensor | tuple[Tensor, Tensor]:
    """Random leaf states that require grad, for a batch or (None) for an unbatched input."""
    dtype = next(module.parameters()).dtype
    rows = () if batch is None else (batch,)
    if isinstance(module, nn.RNNCellBase):
        shapes = [(*rows, module.hidden_size)] * 2
    else:
        layers = module.num_layers * (2 if module.bidirectional else 1)
        shapes = [(layers, *rows, module.proj_size or module.hidden_size), (layers, *rows, module.hidden_size)]
    h, c = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return (h, c) if type(module).__name__.startswith("LSTM") else h


def tensors(value: object) -> list[Tensor]:
    """The tensors of a module's argument or result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def copied(value: object) -> object:
    """The same argument with leaf tensors of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
    if isinstance(value, PackedSequence):
        return PackedSequence(copied(value.data), *value[1:])
    if isinstance(value, (tuple, list)):
        return type(value)(copied(item) for item in value)
    return value


def outputs_and_gradients(module: nn.Module, *args) -> dict[str, Tensor]:
    """Call ``module``; then back-propagate a fixed random weighting of all floating results -> results and gradients by name."""
    results = tensors(module(*args))
    named = {f"result {i}": result.detach() for i, result in enumerate(results)}
    differentiable = [result for result in results if result.requires_grad]
    if differentiable:
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in differentiable]
        torch.autograd.backward(differentiable, weights)
    named |= {f"gradient of argument {i}": t.grad for i, t in enumerate(tensors(args)) if t.grad is not None}
    return named | {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same_values(ours: object, torchs: object) -> None:
    """Equal shapes, dtypes and, up to rounding, values, of tensors in dictionaries, tuples or alone."""
    torch.testing.assert_close(ours, torchs, check_stride=False)


def assert_same_call(torchs: nn.Module, ours: nn.Module, *args) -> None:
    """Both modules give the same results and gradients."""
    expected = outputs_and_gradients(torchs, *copied(args))
    assert_same_values(outputs_and_gradients(ours, *copied(args)), expected)


def outcome(function: Callable[[], object]) -> tuple[str, ...]:
    """How a call ends: the warnings it gives and the error it raises, as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function()
            error = "no error"
        except Exception as raised:  # whatever it is, it is what gets compared
            error = f"{type(raised).__name__}: {raised}"
    return (*(f"{w.category.__name__}: {w.message}" for w in caught), error)
