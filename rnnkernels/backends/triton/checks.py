"""Whether an operator's arguments are what :mod:`rnnkernels.ops` says: kernels would read past the end of what is not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import GATES, N_STATES, SAVED_GATES, state_dtype, weights_per_direction


def check_forward(
    cell: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    has_projection: bool,
    bidirectional: bool,
) -> None:
    """Raise RuntimeError, naming the argument, if shapes, dtypes or devices do not fit each other."""
    if not input.is_floating_point():
        raise RuntimeError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    directions, expected = (2 if bidirectional else 1), weights_per_direction(has_biases, has_projection)
    if len(weights) != expected * directions:
        raise RuntimeError(f"expected {expected * directions} weights ({expected} per direction), got {len(weights)}")
    if states[0].dim() != 3 or states[0].size(0) != directions:
        raise RuntimeError(f"h0 must have shape ({directions}, N, ·), got {list(states[0].shape)}")
    if weights[0].dim() != 2 or weights[0].size(0) % GATES[cell]:
        raise RuntimeError(f"w_ih must have {GATES[cell]} * hidden_size rows and 2 axes, got {list(weights[0].shape)}")
    batch, H = states[0].size(1), weights[0].size(0) // GATES[cell]
    _check_rows(input, batch_sizes, batch)
    P = states[0].size(2) if has_projection else H
    rows = GATES[cell] * H
    shapes = [("w_ih", (rows, input.size(-1))), ("w_hh", (rows, P))]
    shapes += [("b_ih", (rows,)), ("b_hh", (rows,))] if has_biases else []
    shapes += [("w_hr", (P, H))] if has_projection else []
    for weight, (name, shape) in zip(weights, shapes * directions, strict=True):
        check(name, weight, shape, input.dtype, input.device)
    for state, name, width in zip(states, ("h0", "c0"), (P, H), strict=False):
        check(name, state, (directions, batch, width), input.dtype, input.device)


def check_backward(
    cell: str,
    grads: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    output: Tensor,
    saved: Sequence[Tensor],
    hidden_size: int,
) -> None:
    """What :func:`check_forward` leaves: gradients of output and final states, output, and the saved tensors."""
    directions, _, width = states[0].shape
    rows = input.shape[:-1]
    output_shape = (*rows, directions * width)
    check("output", output, output_shape, input.dtype, input.device)
    check("gates", saved[0], (directions, *rows, SAVED_GATES, hidden_size), input.dtype, input.device)
    if N_STATES[cell] == 2:
        check("cells", saved[1], (directions, *rows, hidden_size), state_dtype(input.dtype), input.device)
    shapes = (output_shape, *(state.shape for state in states))
    for grad, name, shape in zip(grads, ("grad_output", "grad_h_n", "grad_c_n"), shapes, strict=False):
        if grad is not None:
            check(name, grad, shape, input.dtype, input.device)


def check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise RuntimeError if a tensor is not of this shape, dtype and device."""
    if tuple(tensor.shape) != tuple(shape):
        raise RuntimeError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise RuntimeError(f"{name} is on {tensor.device} and input on {device}")


def _check_rows(input: Tensor, batch_sizes: Tensor | None, batch: int) -> None:
    if batch_sizes is None:
        if input.dim() != 3:
            raise RuntimeError(f"without batch_sizes, input must be (T, N, I), got {list(input.shape)}")
        if input.size(1) != batch:
            raise RuntimeError(f"input has a batch of {input.size(1)}, h0 one of {batch}")
        if input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return
    if batch_sizes.device.type != "cpu" or batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
        raise RuntimeError("batch_sizes must be a 1-D int64 tensor on the CPU")
    if input.dim() != 2:
        raise RuntimeError(f"with batch_sizes, input must be (R, I), got {list(input.shape)}")
    sizes = batch_sizes.tolist()
    if not sizes:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if sizes != sorted(sizes, reverse=True) or sizes[-1] < 1 or sizes[0] > batch:
        raise RuntimeError(f"batch_sizes must be positive, not increase, nor exceed the batch of h0 ({batch}), got {sizes}")
    if sum(sizes) != input.size(0):
        raise RuntimeError(f"batch_sizes sum up to {sum(sizes)}, but input has {input.size(0)} rows")
