"""One pass of one layer's operators on numbers that do not matter: what is compiled ahead and what is timed for tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnkernels import ops  # noqa: F401  (registers the operators)
from rnnkernels.backends.triton import gru, lstm

from ..cases import Case
from .problems import GATES
from .schedules import TRITON_STEPWISE, only, torch_dtype

_TRITON = {"lstm": lstm, "gru": gru}


def forward_pass(case: Case, precision: str, device: torch.device, backend: str) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the cell's forward operator; in training it keeps what backward needs."""
    arguments, forward = _operands(case, precision, device), _operator(case, backend, "forward")
    return lambda: forward(*arguments, case.mode == "training")


def backward_pass(case: Case, precision: str, device: torch.device, backend: str) -> Callable[[], tuple]:
    """A call of the cell's backward operator, weight gradients included."""
    operands = _operands(case, precision, device)
    n_states = 2 if case.cell == "lstm" else 1
    tensors, flags = operands[: 3 + n_states], operands[3 + n_states :]
    forward = _operator(case, backend, "forward")
    if backend == "triton":  # with what is compiled soonest
        with only(TRITON_STEPWISE):
            output, *rest = forward(*operands, True)
    else:
        output, *rest = forward(*operands, True)
    grads = [torch.empty_like(value).normal_() for value in (output, *rest[:n_states])]
    arguments = (*grads, *tensors, output, *rest[n_states:], *flags, True, True)
    backward = _operator(case, backend, "backward")
    return lambda: backward(*arguments)


def _operator(case: Case, backend: str, way: str) -> Callable[..., Any]:
    if backend == "triton":
        return getattr(_TRITON[case.cell], way)
    return getattr(torch.ops.rnnkernels, f"{case.cell}_{way}")  # the device of its tensors decides whose kernels


def _operands(case: Case, precision: str, device: torch.device) -> tuple:
    """input, batch_sizes, states, weights, and the flags for biases, (LSTM) projection and directions."""
    D, G = 2 if case.bidirectional else 1, GATES[case.cell]

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_(std=case.H**-0.5).to(torch_dtype(precision))

    batch_sizes, shape = None, (case.T, case.B, case.I)
    if case.packed:
        batch_sizes = torch.full((case.T,), case.B)
        shape = (case.T * case.B, case.I)
    states = [new(D, case.B, case.H) for _ in range(2 if case.cell == "lstm" else 1)]
    weights = [w for _ in range(D) for w in (new(G * case.H, case.I), new(G * case.H, case.H), new(G * case.H), new(G * case.H))]
    flags = (True, False, D == 2) if case.cell == "lstm" else (True, D == 2)
    return (new(*shape), batch_sizes, *states, weights, *flags)
