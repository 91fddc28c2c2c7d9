"""Who is measured: torch.nn, which is the baseline, and this package as a whole ("rnnkernels") or backend by backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnkernels
from rnnkernels import backends

from .cases import TORCH_CLASSES, Case, Problem

BASELINE = "torch.nn"
OURS = "rnnkernels"

#: One measured call: computes the case and returns its results, by name.
Step = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Provider:
    """A class per cell with torch.nn's interface, and the scope within which its modules are called."""

    name: str
    classes: dict[str, type[nn.Module]]
    scope: Callable[[], AbstractContextManager] = nullcontext
    unsupported: Callable[[Case], str | None] = lambda case: None

    def prepare(self, problem: Problem, dtype: torch.dtype | None = None) -> Step:
        """The case's step in its dtype, or in another for an oracle; call it within :attr:`scope`."""
        module = self.classes[problem.case.cell](**problem.case.options()).to(dtype or problem.case.torch_dtype)
        module.load_state_dict(problem.weights)
        return _step(module, problem, dtype or problem.case.torch_dtype)


def make(name: str) -> Provider:
    """The provider called ``name``: "torch.nn", "rnnkernels", or "rnnkernels:" and the name of a backend."""
    if name == BASELINE:
        return Provider(name, dict(TORCH_CLASSES))
    package, _, backend = name.partition(":")
    if package != OURS:
        raise ValueError(f"unknown provider {name!r}; known are {', '.join(names())}")
    classes = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}
    if not backend:
        return Provider(name, classes)
    return Provider(name, classes, lambda: rnnkernels.use_backend(backend), lambda case: _objection(backend, case))


def names() -> list[str]:
    return [BASELINE, OURS, *(f"{OURS}:{backend}" for backend in backends.PREFERENCE)]


def _objection(backend: str, case: Case) -> str | None:
    request = backends.Request(
        cell=case.cell,
        device=torch.device("cpu"),
        dtype=case.torch_dtype,
        input_size=case.I,
        hidden_size=case.H,
        proj_size=case.proj_size,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        packed=case.packed,
    )
    return backends.get(backend).unsupported(request)


def _step(module: nn.Module, problem: Problem, dtype: torch.dtype) -> Step:
    parameters = dict(module.named_parameters())
    x = problem.input.data.to(dtype) if problem.case.packed else problem.input.to(dtype)
    grad_output = problem.grad_output.to(dtype)

    def forward(data: Tensor) -> tuple[Tensor, ...]:
        output, finals = module(problem.input._replace(data=data) if problem.case.packed else data)
        output = output.data if isinstance(output, PackedSequence) else output
        return output, *(finals if problem.case.cell == "lstm" else (finals,))

    def inference() -> dict[str, Tensor]:
        with torch.no_grad():
            return _named(*forward(x))

    def training() -> dict[str, Tensor]:
        # As in the middle of a network: the layer below wants a gradient too.
        leaf = x.detach().requires_grad_()
        results = forward(leaf)
        grads = torch.autograd.grad(results[0], [leaf, *parameters.values()], grad_output)
        return _named(*results) | dict(zip(("grad_input", *parameters), grads, strict=True))

    return training if problem.case.mode == "training" else inference


def _named(output: Tensor, *finals: Tensor) -> dict[str, Tensor]:
    return {"output": output, **dict(zip(("h_n", "c_n"), finals, strict=False))}
