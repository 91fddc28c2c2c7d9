"""Triton kernels for NVIDIA and AMD GPUs: no compiler is needed at install time.

The kernels import Triton, and are imported, when a layer first runs on them: ``import rnnkernels`` stays quick and works
without it.

======================  ==============================================================================
:mod:`.tiles`           what kernels of both cells are made of
:mod:`.lstm`            the LSTM: cell, kernels, launchers
:mod:`.gru`             the GRU, section by section the same
:mod:`.plan`            which schedule and tiles for which layer
:mod:`.tuning`          measured tiles, kept on disk
:mod:`.sequence`        what launchers share
:mod:`.checks`          whether arguments are what the operators promise
======================  ==============================================================================
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .. import Request


def interpreted() -> bool:
    """Whether kernels would run in Triton's interpreter, on tensors in the computer's memory."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def missing() -> str | None:
    """Why Triton kernels cannot be compiled or interpreted here at all, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    return None


def unsupported_device(device: torch.device) -> str | None:
    """Why kernels cannot run on tensors of a device, or None if they can."""
    if device.type == "meta":
        return None
    if interpreted():
        return None if device.type == "cpu" else f"TRITON_INTERPRET=1 runs kernels on the CPU and the tensors are on {device}"
    if device.type != "cuda":
        return f"it computes on GPUs and the tensors are on {device}"
    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"the GPU's compute capability is {major}.{minor} and 8.0 is needed"
    return None


def implementation(name: str) -> Callable:
    """The function of an operator such as "lstm_forward"; its module is imported when it is first called."""
    cell, direction = name.split("_")

    def call(*args):
        return getattr(importlib.import_module(f".{cell}", __name__), direction)(*args)

    return call


def describe(request: Request, batch: int) -> str:
    """The schedules and tiles of forward and backward for a batch, in words. The request must be one that can be served."""
    from . import sequence, tuning
    from .plan import Workload, why_stepwise

    tensor = torch.empty(0, dtype=request.dtype, device=request.device)
    device = sequence.device_of(tensor)
    parts = []
    for backward in (False, True):
        work = Workload(
            request.cell,
            backward,
            request.hidden_size,
            batch,
            2 if request.bidirectional else 1,
            tensor.element_size(),
            sequence.precision(request.dtype),
            bool(request.proj_size),
        )
        tiling = tuning.tiling_for(work, device, tensor)
        why = why_stepwise(work, device) if tiling.schedule == "stepwise" else None
        parts.append(f"{'backward' if backward else 'forward'} {tiling}" + (f" ({why})" if why else ""))
    return "; ".join(parts)
