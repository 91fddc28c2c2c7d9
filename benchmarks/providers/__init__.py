"""Who is measured: torch.nn, which is the baseline; this package as a whole ("rnnkernels") or backend by backend; and peers.

===================  =================================================================================================
base.py              what a provider is
modules.py           torch.nn and this package, also on padded batches: classes with torch.nn's interface
onnx_runtime.py      ONNX Runtime, inference and streaming
jax_scan.py          JAX: ``lax.scan`` under ``jit``
compiled_cell.py     a cell under ``torch.compile``, in a Python loop
===================  =================================================================================================

A peer that is not installed, or that cannot do a case, is no error: the result file has the reason.
"""

from __future__ import annotations

import functools
import importlib.util

from rnnkernels import backends

from ..cases import TORCH_CLASSES
from . import compiled_cell, jax_scan, modules, onnx_runtime
from .base import Prepared, Provider

BASELINE = "torch.nn"
PADDED = "torch.nn:padded"
OURS = "rnnkernels"
OURS_PADDED = "rnnkernels:padded"
ONNX_RUNTIME = "onnxruntime"
JAX = "jax"

#: Measured with ``--providers peers``: everything that runs on the CPU and takes seconds a case, not minutes; and ours on the
#: padded batch, next to which packed sequences show what they cost.
CPU_PEERS = (PADDED, OURS_PADDED, ONNX_RUNTIME, JAX)

__all__ = ["BASELINE", "CPU_PEERS", "JAX", "ONNX_RUNTIME", "OURS", "OURS_PADDED", "PADDED"]
__all__ += ["Prepared", "Provider", "make", "names"]

_FACTORIES = {
    BASELINE: functools.partial(modules.torch_nn, BASELINE),
    PADDED: functools.partial(modules.padded, TORCH_CLASSES, PADDED),
    OURS: functools.partial(modules.rnnkernels_backend, OURS),
    OURS_PADDED: functools.partial(modules.padded, modules.OUR_CLASSES, OURS_PADDED),
    **{f"{OURS}:{name}": functools.partial(modules.rnnkernels_backend, f"{OURS}:{name}", name) for name in backends.PREFERENCE},
    ONNX_RUNTIME: functools.partial(onnx_runtime.provider, ONNX_RUNTIME),
    JAX: functools.partial(jax_scan.provider, JAX),
    "torch.compile": functools.partial(compiled_cell.provider, "torch.compile"),
}

#: Peers with kernels for GPUs and weights laid out their own way, so that no gate can hold their results against torch.nn's:
#: here they are only named. The package that has them, and what it lacks to be a provider.
_ELSEWHERE = {
    "flashrnn": "python -m benchmarks.gpu_acceptance times it, without a gate: it takes a projected input and weights of its own",
    "torchrl": "python -m benchmarks.gpu_acceptance times it, without a gate: its modules round what torch.nn does not",
    "haste": "its layers name and order weights their own way and are not maintained for this torch",
}


def names() -> list[str]:
    return [*_FACTORIES, *_ELSEWHERE]


def make(name: str, device: str = "cpu") -> Provider:
    """The provider of that name, one of :func:`names`, on a device. Whether it can be measured there is in ``absent``."""
    if name in _ELSEWHERE:
        installed = importlib.util.find_spec(name) is not None
        return Provider(name, _no_prepare, absent=_ELSEWHERE[name] if installed else f"{name} is not installed")
    if name not in _FACTORIES:
        raise ValueError(f"unknown provider {name!r}; known are {', '.join(names())}")
    if device != "cpu" and name in (ONNX_RUNTIME, JAX):
        return Provider(name, _no_prepare, absent=f"it is measured on the CPU, not on {device}")
    return _FACTORIES[name](device=device)


def _no_prepare(problem: object) -> Prepared:
    raise NotImplementedError("a provider that is absent is not measured")
