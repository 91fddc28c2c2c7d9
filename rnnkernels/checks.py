"""What a call is refused for, with torch.nn's words where it has any: the one place for checks of shapes, dtypes and devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import autocast
from .backends import FLOAT_DTYPES


def check_input(input: Tensor, batch_sizes: Tensor | None, weights: Sequence[Tensor]) -> int:
    """Check input (T, N, I), or packed (R, I) with batch_sizes (T,), and its agreement with the weights -> N, the batch size."""
    dtype, device = input.dtype, input.device
    for weight in weights:
        if weight is None:
            raise TypeError("expected a Tensor for every weight, but got None")
        if weight.dtype != dtype and not autocast.active(device.type):
            raise ValueError(
                f"RNN input dtype ({dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({dtype})"
            )
        if weight.device != device:
            raise RuntimeError(_elsewhere("parameter", weight, input))
    expected_dim = 3 if batch_sizes is None else 2
    if input.dim() != expected_dim:
        raise RuntimeError(f"input must have {expected_dim} dimensions, got {input.dim()}")
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"input must be float32, float64, float16 or bfloat16, got {dtype}")
    if input.size(-1) != weights[0].size(1):
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {weights[0].size(1)}, got {input.size(-1)}")
    if batch_sizes is None:
        if input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return input.size(1)
    if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu" or batch_sizes.dim() != 1:
        raise RuntimeError(
            "batch_sizes must be a one-dimensional int64 tensor on the CPU, got "
            f"{batch_sizes.dim()} dimensions, {batch_sizes.dtype}, {batch_sizes.device}"
        )
    if batch_sizes.numel() == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return int(batch_sizes[0])


def check_states(states: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]], input: Tensor) -> None:
    """Check a layer stack's initial states against the shapes they must have and against its input."""
    if len(states) != len(shapes):
        raise RuntimeError("lstm expects two hidden states")
    names = ("hidden",) if len(shapes) == 1 else ("hidden[0]", "hidden[1]")
    for state, shape, name in zip(states, shapes, names, strict=True):
        if tuple(state.shape) != shape:
            raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")
        _check_same_kind(name, state, input)


def check_cell(cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None]) -> None:
    """Check one step's input (N, I) and states (N, H) against each other and the weights."""
    if len(states) != (2 if cell == "lstm" else 1):
        raise RuntimeError("lstm_cell expects two hidden states")
    input_size, hidden_size = weights[0].size(1), weights[1].size(1)
    batch, features = input.shape
    if features != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {features} expected {input_size}")
    dtype, device = input.dtype, input.device
    for i, state in enumerate(states):
        if state.shape != (batch, hidden_size):
            _refuse_cell_state(i, state, batch, hidden_size)
        if state.dtype != dtype or state.device != device:
            _check_same_kind(f"hidden{i}", state, input)
    for weight in weights:
        if weight is not None and (weight.dtype != dtype or weight.device != device):
            _check_same_kind("parameter", weight, input)


def _refuse_cell_state(i: int, state: Tensor, batch: int, hidden_size: int) -> None:
    if state.size(0) != batch:
        raise RuntimeError(f"Input batch size {batch} doesn't match hidden{i} batch size {state.size(0)}")
    if state.size(1) != hidden_size:
        raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {state.size(1)}, expected {hidden_size}")
    raise RuntimeError(f"hidden{i} must have as many dimensions as input")


def _check_same_kind(name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise RuntimeError(_elsewhere("parameter" if name == "parameter" else "hidden", tensor, input))
    if tensor.dtype != input.dtype and not autocast.active(input.device.type):
        raise RuntimeError(f"{name} dtype ({tensor.dtype}) does not match input dtype ({input.dtype})")


def _elsewhere(name: str, tensor: Tensor, input: Tensor) -> str:
    return (
        f"Input and {name} tensors are not at the same device, found input tensor at "
        f"{input.device} and {name} tensor at {tensor.device}"
    )
