"""What autocast does to LSTM and GRU: the rule torch.nn follows, stated in one place.

On CUDA every layer and cell computes in autocast's lower-precision dtype. On the CPU torch.nn lowers LSTM layers only: GRU layers
and both cells return the widest dtype among their inputs. float64 is never lowered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

DEVICE_TYPES = ("cpu", "cuda")

T = TypeVar("T", bound=Callable)


def active(device_type: str) -> bool:
    """Whether autocast is on for this kind of device."""
    return device_type in DEVICE_TYPES and torch.is_autocast_enabled(device_type)


def compute_dtype(op: str, device_type: str, tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype that ``op`` ("lstm", "gru", "lstm_cell" or "gru_cell") computes in, given the tensors it was called with."""
    widest = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    if widest == torch.float64 or (device_type == "cpu" and op != "lstm"):
        return widest
    return torch.get_autocast_dtype(device_type)


def dispatch_key(device_type: str) -> str:
    return f"Autocast{device_type.upper()}"


def rule(op: torch._ops.OpOverload, device_type: str) -> Callable:
    """The autocast kernel of a forward operator: cast every floating tensor, then call it with autocast off."""
    name = op._schema.name.removesuffix("_forward").rpartition("_")[2]  # "lstm" or "gru"

    def kernel(*args):
        flat = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,)) if _is_float(t)]
        dtype = compute_dtype(name.rpartition(":")[2], device_type, flat)
        with torch.autocast(device_type, enabled=False):
            return op(*(_cast(a, dtype) for a in args))

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
