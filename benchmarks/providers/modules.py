"""Classes with torch.nn's interface: torch.nn itself and this package's, also on padded batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnkernels
from rnnkernels import backends

from ..cases import TORCH_CLASSES, Case, Problem
from .base import Prepared, Provider, Results, named

OUR_CLASSES: dict[str, type[nn.Module]] = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}


def torch_nn(name: str, device: str = "cpu") -> Provider:
    return Provider(name, functools.partial(prepare, TORCH_CLASSES))


def rnnkernels_backend(name: str, backend: str | None = None, device: str = "cpu") -> Provider:
    """This package, left to choose or held to one backend."""
    making = functools.partial(prepare, OUR_CLASSES)
    if backend is None:
        return Provider(name, making)
    unsupported = functools.partial(_objection, backend, device)
    return Provider(name, making, unsupported, scope=functools.partial(rnnkernels.use_backend, backend))


def padded(classes: dict[str, type[nn.Module]], name: str, device: str = "cpu") -> Provider:
    """A class on the padded batch: what a user of ragged sequences does whom packed ones are too slow.

    It has neither final states, which would have to be picked out of the output, nor the reverse direction, which would begin in
    the padding.
    """
    return Provider(name, functools.partial(_prepare_padded, classes), _padded_unsupported, omits=frozenset({"h_n", "c_n"}))


def prepare(classes: dict[str, type[nn.Module]], problem: Problem, dtype: torch.dtype | None = None) -> Prepared:
    """The case's module in the case's dtype, or in another for an oracle."""
    case, dtype = problem.case, dtype or problem.case.torch_dtype
    module = classes[case.cell](**case.options()).to(problem.grad_output.device, dtype)
    module.load_state_dict(problem.weights)
    if case.mode == "streaming":
        return _streaming(module, problem.input.to(dtype))
    x = problem.input.data.to(dtype) if case.packed else problem.input.to(dtype)

    def forward(data: Tensor) -> tuple[Tensor, ...]:
        output, finals = module(problem.input._replace(data=data) if case.packed else data)
        output = output.data if isinstance(output, PackedSequence) else output
        return output, *(finals if case.cell == "lstm" else (finals,))

    return _pass(case.mode, forward, dict(module.named_parameters()), x, problem.grad_output.to(dtype))


def _pass(
    mode: str, forward: Callable[[Tensor], tuple[Tensor, ...]], parameters: dict[str, Tensor], x: Tensor, grad_output: Tensor
) -> Prepared:
    scope = torch.no_grad if mode == "inference" else nullcontext

    def prepared(call: Callable[[], tuple[Tensor, ...]]) -> Prepared:
        def results() -> Results:
            with scope():
                return named(mode, call(), list(parameters))

        return Prepared(call, results, scope)

    def gradients(output: Tensor, leaf: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, [leaf, *parameters.values()], grad_output, retain_graph=keep)

    if mode == "inference":
        return prepared(functools.partial(forward, x))
    # As in the middle of a network: the layer below wants a gradient too.
    if mode == "forward":
        return prepared(lambda: forward(x.detach().requires_grad_()))
    if mode == "backward":
        leaf = x.detach().requires_grad_()
        output = forward(leaf)[0]
        return prepared(lambda: gradients(output, leaf, keep=True))

    def training() -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        values = forward(leaf)
        return *values, *gradients(values[0], leaf)

    return prepared(training)


# --- streaming -----------------------------------------------------------------------------------------------------------


def _streaming(module: Any, x: Tensor) -> Prepared:
    batch = x.size(1)
    streams = hasattr(module, "stream") and x.dtype != torch.float16

    def fresh() -> Callable[[Tensor], Tensor]:
        return module.stream(batch).step if streams else _module_step(module)

    step = fresh()

    @torch.no_grad()
    def results() -> Results:
        own = fresh()
        return {"output": torch.stack([own(row).view(batch, -1).clone() for row in x])}

    return Prepared(functools.partial(step, x[0]), results, torch.no_grad)


def _module_step(module: nn.Module) -> Callable[[Tensor], Tensor]:
    state = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        output, state = module(x[None], state)
        return output

    return step


# --- padded --------------------------------------------------------------------------------------------------------------


def _prepare_padded(classes: dict[str, type[nn.Module]], problem: Problem) -> Prepared:
    case = problem.case
    module = classes[case.cell](**case.options()).to(problem.grad_output.device, case.torch_dtype)
    module.load_state_dict(problem.weights)
    parameters = dict(module.named_parameters())
    made = _pass(case.mode, lambda x: (module(x)[0],), parameters, problem.padded_input(), problem.padded_grad_output())

    def results() -> Results:
        values = made.results()
        return {k: problem.packed(v) if k in ("output", "grad_input") else v for k, v in values.items()}

    return Prepared(made.call, results, made.scope)


def _padded_unsupported(case: Case) -> str | None:
    if not case.packed:
        return "the batch is not ragged"
    return "the reverse direction would begin in the padding" if case.bidirectional else None


def request(case: Case, device: str = "cpu") -> backends.Request:
    """What the case asks of a backend."""
    return backends.Request(
        cell=case.cell,
        device=torch.device(device),
        dtype=case.torch_dtype,
        input_size=case.I,
        hidden_size=case.H,
        proj_size=case.proj_size,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        packed=case.packed,
    )


def _objection(backend: str, device: str, case: Case) -> str | None:
    return backends.get(backend).unsupported(request(case, device))
