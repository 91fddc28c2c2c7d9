"""The native operator libraries: whether they are there, what the CUDA kernels can serve, and how they are called."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _library, precision

if TYPE_CHECKING:
    from . import Request

_status = _library.load()
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Clusters of 16 thread blocks are not portable: these compute capabilities have them, others go up to 8.
_CLUSTERS_OF_16 = ((9, 0), (10, 0))


def missing() -> str | None:
    """Why the CPU library's operators cannot be called, or None if they can."""
    return None if _status.available else _status.reason


def cuda_unsupported(request: Request) -> str | None:
    """Why the CUDA kernels cannot serve ``request``, or None if they can."""
    if request.device.type != "cuda":
        return f"it computes on CUDA devices and the tensors are on {request.device}"
    if request.dtype not in _DTYPES:
        return f"{request.dtype} is not one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}"
    status = _library.load_cuda()
    if not status.available:
        return status.reason
    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    needed = (8, 0) if request.dtype == torch.bfloat16 else (7, 0)
    major, minor = torch.cuda.get_device_capability(request.device)
    if (major, minor) < needed:
        dtype = str(request.dtype).removeprefix("torch.")
        return f"the GPU's compute capability is {major}.{minor} and {dtype} needs {needed[0]}.{needed[1]}"
    return None


#: The smallest and the largest hidden size at which the CUDA kernels were measured ahead of cuDNN, by dtype and cell, at batches
#: from 1 to 256: benchmarks/results/h200/speed.json. Below 193 units, and in float16 LSTMs with multiples of 128 above 512, cuDNN
#: keeps the weights on the chip itself. float32 means TF32.
_AHEAD = {
    (torch.bfloat16, "lstm"): (64, 1024),
    (torch.bfloat16, "gru"): (64, 1024),
    (torch.float16, "lstm"): (193, 512),
    (torch.float16, "gru"): (193, 1024),
    (torch.float32, "lstm"): (193, 1024),
    (torch.float32, "gru"): (193, 1024),
}


def cuda_behind(request: Request) -> str | None:
    """Why ``auto`` leaves a layer that the CUDA kernels could serve to another backend, or None: they were measured ahead."""
    if torch.cuda.get_device_capability(request.device) != (9, 0):
        return "the CUDA kernels were measured on compute capability 9.0 only"
    if request.transformed or request.one_step:
        return "in cells and inside torch.func's transforms they were not measured"
    if request.dtype == torch.float32 and not precision.allows_tf32():
        return "in float32 without TF32 they were not measured against cuDNN"
    if request.proj_size or (request.dtype, request.cell) not in _AHEAD:
        return "projected layers and float64 go step by step, through torch's products"
    least, most = _AHEAD[request.dtype, request.cell]
    if not least <= request.hidden_size <= most:
        dtype = str(request.dtype).removeprefix("torch.")
        return f"of {dtype} {request.cell.upper()} layers, those of {least} to {most} hidden units were measured ahead of cuDNN"
    # cuDNN may overlap layers and directions. It was measured to take more than twice as long for one.
    if request.num_layers * (2 if request.bidirectional else 1) > 2:
        return "stacks of more than two layers or directions, which cuDNN may overlap, were not measured"
    return None


# --- calling the operators -----------------------------------------------------------------------------------------------

#: What an operator of the CUDA library is told after the arguments of :mod:`rnnkernels.ops`.
MANNER = "bool allow_tf32, str schedule, str tile, int ctas"


class Wish(NamedTuple):
    """A schedule asked for in place of the plan's choice; empty or zero: the plan's."""

    schedule: str = ""
    tile: str = ""
    ctas: int = 0


class _Forced(threading.local):
    wish = Wish()


_forced = _Forced()


@contextmanager
def forced(schedule: str, *, tile: str | None = None, ctas: int | None = None) -> Iterator[None]:
    """Compute every layer of the CUDA backend inside with this schedule, in this thread, to test and to measure it.

    Args:
        schedule: "one CTA", "cluster", "grid" or "stepwise".
        tile: "narrow", "broad", "tall" or "deep" of one CTA or a cluster, "thin", "even" or "wide" of a grid; by default the plan
            chooses.
        ctas: how many thread blocks share the units of a direction; likewise.

    A layer that the schedule cannot serve raises RuntimeError with the reason. Backward runs in another thread unless
    ``torch.autograd.set_multithreading_enabled(False)``.
    """
    previous, _forced.wish = _forced.wish, Wish(schedule, tile or "", ctas or 0)
    try:
        yield
    finally:
        _forced.wish = previous


def implementation(name: str) -> Callable:
    """The operator ``name``, such as "lstm_forward", for CUDA tensors: the library's, with the wishes of this thread."""
    cell, direction = name.split("_")
    input_index = {"forward": 0, "backward": 3 if cell == "lstm" else 2}[direction]

    def call(*arguments):
        status = _library.load_cuda()
        if not status.available:
            raise RuntimeError(status.reason)
        return run(getattr(torch.ops.rnnkernels, f"cuda_{name}").default, arguments, arguments[input_index])

    return call


def run(op: torch._ops.OpOverload, arguments: tuple, input: torch.Tensor) -> Any:
    """Call an operator of the CUDA library. Library products within follow the same switch as its own."""
    with precision.of_library_products(input):
        return op(*arguments, precision.allows_tf32(), *_forced.wish)


# --- plans ---------------------------------------------------------------------------------------------------------------


def describe_cuda(request: Request, batch: int) -> str:
    """The schedules the CUDA kernels would take for a layer of ``request`` with this batch."""
    return "; ".join(f"{way} {plan(request, batch, way == 'backward')['reason']}" for way in ("forward", "backward"))


def plan(request: Request, batch: int, backward: bool) -> dict[str, Any]:
    """What a pass would be computed with: schedule, tile, ctas, units, rows, threads, shared_bytes, estimated microseconds per
    step, measured and reason. :func:`forced` is heeded; what it asks for in vain gives "stepwise" and the reason."""
    return _plan(request, batch, backward, _forced.wish)


def candidates(request: Request, batch: int, backward: bool) -> list[dict[str, Any]]:
    """Everything a pass could be computed with, the same way described; stepwise, which always fits, comes last."""
    return _plan(request, batch, backward, Wish())["candidates"]


def _plan(request: Request, batch: int, backward: bool, wish: Wish) -> dict[str, Any]:
    return _plan_for(
        request.cell,
        str(request.dtype).removeprefix("torch."),
        precision.allows_tf32(),
        request.hidden_size,
        batch,
        2 if request.bidirectional else 1,
        request.proj_size > 0,
        request.device.index or 0,
        backward,
        wish,
    )


@functools.lru_cache(maxsize=1024)
def _plan_for(
    cell: str,
    dtype: str,
    tf32: bool,
    hidden: int,
    batch: int,
    directions: int,
    projected: bool,
    device: int,
    backward: bool,
    wish: Wish,
) -> dict[str, Any]:
    from .. import _C

    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return _C.cuda_plan(
        cell=cell,
        dtype=dtype,
        tf32=tf32,
        backward=backward,
        hidden=hidden,
        batch=batch,
        directions=directions,
        projected=projected,
        compute_capability=10 * properties.major + properties.minor,
        multiprocessors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        most_cluster=1 if capability < (9, 0) else 16 if capability in _CLUSTERS_OF_16 else 8,
        **wish._asdict(),
    )
