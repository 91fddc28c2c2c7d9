"""What autocast does to LSTM and GRU: the rule torch.nn follows, stated in one place.

On CUDA every layer and cell computes in autocast's lower-precision dtype. On the CPU torch.nn lowers LSTM layers only: GRU layers
and both cells return the wider of that dtype and their states', and compute in it here. float64 is never lowered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .layout import N_STATES

DEVICE_TYPES = ("cpu", "cuda")

T = TypeVar("T", bound=Callable)


def active(device_type: str) -> bool:
    """Whether autocast is on for this kind of device."""
    return device_type in DEVICE_TYPES and torch.is_autocast_enabled(device_type)


def compute_dtype(op: str, device_type: str, states: Sequence[Tensor], others: Sequence[Tensor]) -> torch.dtype:
    """The dtype that ``op`` ("lstm", "gru", "lstm_cell" or "gru_cell") computes in, given the states and other tensors it was
    called with. States that are left out count as zeros of the input's dtype."""
    if any(t.dtype == torch.float64 for t in (*states, *others)):
        return torch.float64
    dtype = torch.get_autocast_dtype(device_type)
    if device_type == "cpu" and op != "lstm":
        return functools.reduce(torch.promote_types, (t.dtype for t in states), dtype)
    return dtype


def dispatch_key(device_type: str) -> str:
    return f"Autocast{device_type.upper()}"


def rule(op: torch._ops.OpOverload, name: str, device_type: str) -> Callable:
    """The autocast kernel of the operator ``name`` (such as "lstm_forward") of a family. Forward: cast every floating tensor,
    then call it with autocast off. Backward: only turn autocast off, since what forward kept has the dtypes it computed in."""
    cell, direction = name.split("_")
    n_states = N_STATES[cell]

    def kernel(*args):
        if direction == "forward":
            input, _, *rest = args
            states, weights = rest[:n_states], rest[n_states]
            dtype = compute_dtype(cell, device_type, states, (input, *weights))
            args = [_cast(a, dtype) for a in args]
        with torch.autocast(device_type, enabled=False):
            return op(*args)

    return kernel


def disabled_within(function: T) -> T:
    """Run ``function(...)`` with autocast off: a kernel computes in the dtypes it was given."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        on = [device_type for device_type in DEVICE_TYPES if torch.is_autocast_enabled(device_type)]
        if not on:
            return function(*args, **kwargs)
        with torch.autocast(on[0], enabled=False), torch.autocast(on[-1], enabled=False):
            return function(*args, **kwargs)

    return wrapper


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, (list, tuple)):
        return [_cast(v, dtype) for v in value]
    return value.to(dtype) if _is_float(value) else value
