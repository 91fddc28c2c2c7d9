"""The peak of memory that a call takes beyond what was in use before.

On a GPU it is counted by torch's allocator. On the CPU it is the process's resident memory, which Linux keeps the high-water mark
of: everything a call touches is in it, tensors as well as workspaces of libraries, in whole pages and only where memory that an
earlier call freed has gone back to the system.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Below this, the allocator's own bookkeeping and partly used pages are as large as what is measured.
SMALLEST_BYTES = 2**20


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
