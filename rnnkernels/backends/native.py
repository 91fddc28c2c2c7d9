"""The native operator libraries: whether they are there, and what the CUDA kernels can serve."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from .. import _library

if TYPE_CHECKING:
    from . import Request

_status = _library.load()
# Clusters of 16 thread blocks are not portable: these compute capabilities have them, others go up to 8.
_CLUSTERS_OF_16 = ((9, 0), (10, 0))


def missing() -> str | None:
    """Why the CPU library's operators cannot be called, or None if they can."""
    return None if _status.available else _status.reason


def cuda_unsupported(request: Request) -> str | None:
    """Why the CUDA kernels cannot serve ``request``, or None if they can."""
    if request.device.type != "cuda":
        return f"it computes on CUDA devices and the tensors are on {request.device}"
    dtypes = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
    if request.dtype not in dtypes:
        return f"{request.dtype} is not one of {', '.join(dtypes.values())}"
    if request.proj_size:
        return "its kernels have no projected state"
    status = _library.load_cuda()
    if not status.available:
        return status.reason
    return _no_schedule(request.cell, dtypes[request.dtype], request.hidden_size, request.device.index or 0)


def describe_cuda(request: Request, batch: int) -> str:
    """The schedules the CUDA kernels would take for a layer of ``request`` with this batch."""
    dtype, device = str(request.dtype).removeprefix("torch."), request.device.index or 0
    plans = [_plan(request.cell, dtype, request.hidden_size, batch, device, backward) for backward in (False, True)]
    return "; ".join(f"{name} {plan['reason']}" for name, plan in zip(("forward", "backward"), plans, strict=True))


def _no_schedule(cell: str, dtype: str, hidden: int, device: int) -> str | None:
    """Which sizes fit depends on neither batch nor length."""
    for backward in (False, True):
        try:
            plan = _plan(cell, dtype, hidden, 1, device, backward)
        except ImportError as error:
            return f"the module that plans its schedules does not load: {error}"
        if plan["schedule"] == "stepwise":
            step = "backward" if backward else "forward"
            return f"its kernels keep the weights on chip, and {step} these do not fit: {plan['reason']}"
    return None


@functools.lru_cache(maxsize=1024)
def _plan(cell: str, dtype: str, hidden: int, batch: int, device: int, backward: bool) -> dict[str, Any]:
    from .. import _C

    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return _C.cuda_plan(
        cell=cell,
        dtype=dtype,
        backward=backward,
        hidden=hidden,
        batch=batch,
        compute_capability=10 * properties.major + properties.minor,
        multiprocessors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        most_cluster=1 if capability < (9, 0) else 16 if capability in _CLUSTERS_OF_16 else 8,
        persistent_only=True,
    )
