"""Which implementation computes a layer: :func:`choose` decides, :func:`explain` says why.

Every backend answers ``unsupported(request)`` with a reason or None. In ``auto`` the first backend of :data:`PREFERENCE` that
supports the request is taken, but for those that are ``behind`` another one there; a backend asked for by name that cannot serve
raises with its reason.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import native, triton

CELLS = ("lstm", "gru")
FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Request(NamedTuple):
    """What a call asks for, as far as choosing a backend goes. Lengths and batch sizes are left out on purpose: a choice that
    looked at them would make ``torch.compile`` recompile for each."""

    cell: str  # "lstm" or "gru"
    device: torch.device
    dtype: torch.dtype
    input_size: int
    hidden_size: int
    proj_size: int = 0
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    transformed: bool = False  # inside torch.func.vmap, grad, jvp, …
    forward_ad: bool = False  # a forward-mode derivative is being computed
    one_step: bool = False  # a cell's call


@dataclass(frozen=True)
class Backend:
    """One implementation. ``family`` is the prefix of its operators' names, or None if it does not run through operators."""

    name: str
    description: str
    family: str | None
    unsupported: Callable[[Request], str | None]
    behind: Callable[[Request], str | None] = lambda request: None  # why ``auto`` passes it over, though it could serve

    def objection(self, request: Request) -> str | None:
        """Why ``auto`` does not take it, or None if it could."""
        reason = self.unsupported(request)
        if reason is None and (slower := self.behind(request)) is not None:
            reason = f"by name only: {slower}"
        return reason


class UnsupportedRequest(RuntimeError):
    """A backend was asked for by name and cannot serve the request; the message says why."""


def _reference_unsupported(request: Request) -> str | None:
    return _unsupported_dtype(request)


def _cpu_unsupported(request: Request) -> str | None:
    if request.device.type not in ("cpu", "meta"):
        return f"it computes on the CPU and the tensors are on {request.device}"
    return _forward_ad_unsupported(request) or _unsupported_dtype(request) or native.missing()


def _cuda_unsupported(request: Request) -> str | None:
    return _forward_ad_unsupported(request) or native.cuda_unsupported(request)


def _triton_unsupported(request: Request) -> str | None:
    return (
        triton.missing()
        or triton.unsupported_device(request.device)
        or _forward_ad_unsupported(request)
        or _unsupported_dtype(request)
    )


def _aten_unsupported(request: Request) -> str | None:
    if request.transformed or request.forward_ad:
        return "torch's own layers have no rule for torch.func transforms and forward-mode derivatives"
    return _unsupported_dtype(request)


def _unsupported_dtype(request: Request) -> str | None:
    if request.dtype in FLOAT_DTYPES:
        return None
    return f"{request.dtype} is not one of {', '.join(str(d).removeprefix('torch.') for d in FLOAT_DTYPES)}"


def _forward_ad_unsupported(request: Request) -> str | None:
    if request.forward_ad:
        return "forward-mode derivatives are computed by differentiating the reference equations"
    return None


_BACKENDS = (
    Backend("cpu", "C++ kernels", "", _cpu_unsupported),
    Backend("cuda", "CUDA kernels", "", _cuda_unsupported, native.cuda_behind),
    Backend("aten", "torch's own kernels", None, _aten_unsupported),
    Backend("reference", "the equations in plain torch operations", "reference_", _reference_unsupported),
    # Behind what serves everything, that is by name only: where the CUDA kernels are there, they are faster.
    Backend("triton", "Triton kernels", "triton_", _triton_unsupported),
)
#: Backend names in the order ``auto`` tries them.
PREFERENCE = tuple(backend.name for backend in _BACKENDS)
NAMES = ("auto", *PREFERENCE)


def get(name: str) -> Backend:
    """The backend of that name."""
    for backend in _BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown backend {name!r}; known are {', '.join(NAMES)}")


# --- the user's choice ---------------------------------------------------------------------------------------------------


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}{source}; known are {', '.join(NAMES)}")
    return name


class _Selection(threading.local):
    """The backend asked for in this thread: the process's default, unless :func:`use_backend` is active here."""

    name = _checked(os.environ.get("RNNKERNELS_BACKEND", "auto"), " in the environment variable RNNKERNELS_BACKEND")


_selection = _Selection()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with the named backend inside a ``with`` block, in this thread; "auto" leaves the choice to :func:`choose`.

    Backward runs on the backend that ran forward, wherever it is called.
    """
    previous, _selection.name = _selection.name, _checked(name, "")
    try:
        yield
    finally:
        _selection.name = previous


def selected() -> str:
    """The name asked for in this thread: "auto" or a backend's."""
    return _selection.name


# --- the choice ----------------------------------------------------------------------------------------------------------


def choose(request: Request) -> Backend:
    """The backend that will compute ``request``.

    Raises :class:`UnsupportedRequest` if a backend asked for by name, or in ``auto`` every backend, cannot.
    """
    asked_for = _selection.name
    if asked_for != "auto":
        backend = get(asked_for)
        reason = backend.unsupported(request)
        if reason is not None:
            raise UnsupportedRequest(f"the backend {asked_for!r} was asked for and cannot serve this call: {reason}")
        return backend
    for backend in _BACKENDS:
        if backend.objection(request) is None:
            return backend
    reasons = "; ".join(f"{backend.name}: {backend.objection(request)}" for backend in _BACKENDS)
    raise UnsupportedRequest(f"no backend can compute this {request.cell.upper()}: {reasons}")


@dataclass(frozen=True)
class Explanation:
    """Why a request is computed where it is: the chosen backend and each backend's objection (None: it could serve)."""

    request: Request
    asked_for: str
    chosen: str | None
    objections: dict[str, str | None]
    schedules: str | None = None  # the chosen backend's, where it has several and the batch is known

    def __str__(self) -> str:
        r = self.request
        size = f"input {r.input_size}, hidden {r.hidden_size}" + (f", projection {r.proj_size}" if r.proj_size else "")
        shape = f"{r.num_layers} layer{'s' if r.num_layers > 1 else ''}" + (", both directions" if r.bidirectional else "")
        lines = [
            f"{r.cell.upper()} {size}, {shape}, {'packed' if r.packed else 'dense'}, "
            f"{str(r.dtype).removeprefix('torch.')} on {r.device}",
            f"asked for: {self.asked_for}; chosen: {self.chosen or 'none'}",
        ]
        for backend in _BACKENDS:
            objection = self.objections[backend.name]
            mark = "->" if backend.name == self.chosen else "  "
            lines.append(f"{mark} {backend.name:<10} {backend.description}: {objection or 'can serve'}")
        if self.schedules is not None:
            lines.append(f"schedules: {self.schedules}")
        return "\n".join(lines)


def explain_request(request: Request, batch: int | None = None) -> Explanation:
    """:func:`choose` with its reasons, never raising for an unsupported request."""
    auto = _selection.name == "auto"
    objections = {backend.name: (backend.objection if auto else backend.unsupported)(request) for backend in _BACKENDS}
    candidates = PREFERENCE if auto else (_selection.name,)
    chosen = next((name for name in candidates if objections[name] is None), None)
    describe = {"cuda": native.describe_cuda, "triton": triton.describe}.get(chosen or "")
    schedules = describe(request, batch) if describe is not None and batch else None
    return Explanation(request, _selection.name, chosen, objections, schedules)


def explain(target: Request | torch.nn.Module, input: torch.Tensor | None = None) -> Explanation:
    """Why a module, or a request, is computed where it is: ``print(explain(module, input))``.

    Args:
        target: a :class:`Request`, or an LSTM, GRU, LSTMCell or GRUCell of this package.
        input: what the module would be called with, where its dtype or device differ from the parameters'. With it, a backend
            that has several schedules says which it would take.
    """
    if isinstance(target, Request):
        return explain_request(target)
    request_of = getattr(target, "request", None)
    if request_of is None:
        raise TypeError(f"explain() takes a Request or a module of rnnkernels, got {type(target).__name__}")
    batch_of = getattr(target, "batch_of", None)
    return explain_request(request_of(input), None if input is None or batch_of is None else batch_of(input))
