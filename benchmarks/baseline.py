"""Which of torch's implementations a torch.nn layer is computed by: what a speed-up over torch.nn is a speed-up over."""

from __future__ import annotations

import functools
from dataclasses import replace

from torch.autograd import profiler_legacy

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
    prepared = prepare(TORCH_CLASSES, make_problem(case, seed=0))
    # The profiler that came after it writes to stderr, and a dispatch mode imports torch's compiler, which takes seconds.
    with prepared.scope(), profiler_legacy.profile() as profile:
        prepared.call()
    names = {event.name for event in profile.function_events}
    return next((text for name, text in _FUSED.items() if name in names), "unfused, a library call an operation")
