"""Which of torch's implementations a torch.nn layer is computed by: what a speed-up over torch.nn is a speed-up over."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from .cases import TORCH_CLASSES, Case, make_problem
from .providers.modules import prepare

#: Operators that compute a whole layer.
_FUSED = {"aten::mkldnn_rnn_layer": "oneDNN, fused layer", "aten::_thnn_fused_lstm_cell": "fused cell, a call a step"}


def kernel(case: Case, device: str = "cpu") -> str:
    """In words. On the CPU as observed on a case with few steps, on a GPU as torch's rules ask cuDNN for it."""
    if device != "cpu":
        from .gpu_acceptance.speed import cudnn_algorithm

        passes = (False, True) if case.mode in ("training", "backward") else (False,)
        return "cuDNN " + ", ".join(dict.fromkeys(cudnn_algorithm(case, backward) for backward in passes))
    if case.mode == "streaming":
        case = replace(case, mode="inference")
    if case.mode == "backward":
        case = replace(case, mode="training")
    return _observed(replace(case, T=min(case.T, 4)))


@functools.lru_cache(maxsize=1024)
def _observed(case: Case) -> str:
    call = prepare(TORCH_CLASSES, make_problem(case, seed=0)).call
    with _Operators() as operators:
        call()
    return next((text for name, text in _FUSED.items() if name in operators.seen), "unfused, a library call an operation")


class _Operators(TorchDispatchMode):
    """The names of all operators that are reached."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.seen.add(operator.name())
        return operator(*arguments, **(options or {}))
