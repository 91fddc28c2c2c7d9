"""How products of float32 recurrent layers are computed on a GPU: as torch's switch for recurrent layers says.

That is ``torch.backends.cudnn.rnn.fp32_precision``, which cuDNN's own layers follow: TF32 where it allows it (its default).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def allows_tf32() -> bool:
    """Whether recurrent layers may multiply float32 as TF32."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


@contextmanager
def of_library_products(tensor: Tensor) -> Iterator[None]:
    """Let torch's own matrix products follow the switch for recurrent layers instead of theirs, for float32 on a GPU. Theirs is
    the process's: a product in another thread meanwhile follows it, too."""
    switch = torch.backends.cuda.matmul
    wanted = "tf32" if allows_tf32() else "ieee"
    if not tensor.is_cuda or tensor.dtype != torch.float32 or switch.fp32_precision == wanted:
        yield
        return
    before = switch.fp32_precision
    switch.fp32_precision = wanted
    try:
        yield
    finally:
        switch.fp32_precision = before
