"""The short way of a call in eager mode.

A small layer's call is mostly Python: checks, the choice of a backend and the dispatcher take ten times as long as a step of 64
units. :func:`layers` and :func:`cell` do in one C++ function what :mod:`rnnkernels.functional` does, with the same kernels and so
the same bits, when there is nothing else to do:

* a dense input and parameters that are plain tensors on the CPU, the C++ kernels not passed over by ``use_backend``;
* no autocast, no torch.func transform, no forward-mode derivative;
* nobody who would see Python's part: no tracer, profiler, ``TorchDispatchMode`` or ``TorchFunctionMode``.

Where a gradient may be needed, the operators are called by autograd Functions in C++ (:mod:`rnnkernels.autograd`); otherwise the
kernels are, without the dispatcher. Everything else, and everything that is wrong, gives NotImplemented, and the caller goes the
long way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _library, backends


def _open() -> tuple[Callable[..., Any], Callable[..., Any], str | None]:
    """-> the two functions, and why they never serve, if they do not."""
    module, why = _library.load_eager()
    if module is None:
        return _library.declines, _library.declines, why
    try:
        call = module.DirectCall(str(_library.load().path), backends._selection)
    except RuntimeError as error:  # a library without kernels to call
        return _library.declines, _library.declines, str(error)
    return call.layers, call.cell, None


#: ``layers(module, input, hx)``: what ``module(input, hx)`` returns, for an LSTM or GRU of this package, or NotImplemented.
#: ``cell(lstm, module, input, hx)``: the same for an LSTMCell (lstm=True) or GRUCell.
layers, cell, reason = _open()
