"""The peak of memory that a call takes beyond what was in use before.

On a GPU it is counted by torch's allocator. On the CPU it is the process's resident memory, which Linux keeps the high-water mark
of: everything a call touches is in it, tensors as well as workspaces of libraries, in whole pages. So is what the heap has kept
of calls before it, which can be more than the difference between two libraries: :func:`in_fresh_process` has no past.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Below this, the allocator's own bookkeeping and partly used pages are as large as what is measured.
SMALLEST_BYTES = 2**20
#: What is counted there is what is in use, not what is kept for later: the C library returns blocks from 64 KiB on to the system
#: when they are freed (elsewhere it learns from the sizes it sees what to keep), and this package's kernels keep no workspace.
_NOTHING_KEPT = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536", "RNNKERNELS_KEPT_MEMORY_MIB": "0"}


def unsupported(device: torch.device | str) -> str | None:
    """Why peaks cannot be measured here, or None if they can."""
    if torch.device(device).type == "cuda":
        return None
    if not os.access(_CLEAR, os.W_OK):
        return "the system keeps no high-water mark of resident memory that could be reset"
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return "the C library cannot return freed memory to the system"
    return None


def peak(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes in use at the worst moment of ``call()``, beyond those before; its result counts."""
    call()  # what is allocated once, a library's workspace for one, is not this call's
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        most = torch.cuda.max_memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        before = _status("VmRSS")
        result = call()
        most = _status("VmHWM")
    del result
    return max(0, most - before)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def in_fresh_process(function: Callable[..., Value], *arguments: Any) -> Value:
    """``function(*arguments)``, in a process that has imported torch and this package and computed nothing.

    The function is one of a module's, and it, its arguments and its value can be pickled. What it raises is raised here.

    Raises:
        concurrent.futures.process.BrokenProcessPool: the process died.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.runner"])
    own = _NOTHING_KEPT
    if tunables := os.environ.get("GLIBC_TUNABLES"):
        own = {**own, "GLIBC_TUNABLES": f"{tunables}:{own['GLIBC_TUNABLES']}"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        forkserver.ensure_running()  # the C library reads its settings when the server starts
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
