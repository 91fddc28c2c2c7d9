"""The short way of a call that only computes.

A small layer's call is mostly Python: checks, the choice of a backend and the dispatcher take ten times as long as a step of 64
units. :func:`layers` and :func:`cell` do in one C++ function what :mod:`rnnkernels.functional` does, with the same kernels and so
the same bits, when there is nothing else to do:

* a dense input and parameters that are plain tensors on the CPU, the C++ kernels not passed over by ``use_backend``;
* gradients off (``torch.no_grad``, ``torch.inference_mode``), no dropout, no autocast, no torch.func transform, no forward-mode
  derivative;
* nobody who would see the operators: no tracer, profiler, ``TorchDispatchMode`` or ``TorchFunctionMode``. (An
  ``ExecutionTraceObserver`` without a profiler is not noticed, since torch does not tell: it sees the tensors that are made.)

Everything else, and everything that is wrong, gives NotImplemented, and the caller goes the long way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from . import _library, backends


def _unavailable(*_: object) -> Any:
    return NotImplemented


def _open() -> tuple[Callable[..., Any], Callable[..., Any], str | None]:
    """-> the two functions, and why they never serve, if they do not."""
    status = _library.load()
    if not status.available:
        return _unavailable, _unavailable, status.reason
    try:
        module = importlib.import_module("rnnkernels._C")
        call = module.DirectCall(str(status.path), backends._selection)
    except (ImportError, AttributeError, RuntimeError) as error:  # not built, built before there was this, or for another torch
        return _unavailable, _unavailable, str(error)
    return call.layers, call.cell, None


#: ``layers(module, input, hx)``: what ``module(input, hx)`` returns, for an LSTM or GRU of this package, or NotImplemented.
#: ``cell(lstm, module, input, hx)``: the same for an LSTMCell (lstm=True) or GRUCell.
layers, cell, reason = _open()
