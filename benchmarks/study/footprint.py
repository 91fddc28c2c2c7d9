"""What needs no clock: parameters, operations and memory of a layer, counted by torch and compared with the formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rnnkernels.backends import reference

from .. import providers
from ..cases import TORCH_CLASSES, Case, make_problem
from .arms import CLASSES, Arm, arms, backward_flops, forward_flops, layer_parameters


def measure(hidden_size: int, steps: int, batch: int, seed: int) -> dict[str, Any]:
    """-> arm -> its counts. The layers' inputs are as wide as the LSTM's states."""
    compared = arms(hidden_size, lambda cell, size: layer_parameters(cell, hidden_size, size))
    return {arm.name: _arm(arm, hidden_size, steps, batch, seed) for arm in compared}


def _arm(arm: Arm, input_size: int, steps: int, batch: int, seed: int) -> dict[str, Any]:
    module = TORCH_CLASSES[arm.cell](input_size, arm.hidden_size)
    shape = (arm.cell, input_size, arm.hidden_size, steps, batch)
    case = Case(arm.cell, "training", steps, batch, input_size, arm.hidden_size)
    return {
        "cell": arm.cell,
        "hidden_size": arm.hidden_size,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "parameters_formula": layer_parameters(arm.cell, input_size, arm.hidden_size),
        "forward_flops": counted_by_torch(*shape),
        "forward_flops_formula": forward_flops(*shape),
        "backward_flops_formula": backward_flops(*shape),
        "memory": {name: memory(case, name, seed) for name in CLASSES},
    }


def counted_by_torch(cell: str, input_size: int, hidden_size: int, steps: int, batch: int) -> dict[str, tuple[int, int]]:
    """Forward and backward operations of torch.nn's layer and of this package's equations, by torch's counter.

    In float64, for which torch.nn takes its own products: it cannot look into oneDNN's layers.
    """
    module = TORCH_CLASSES[cell](input_size, hidden_size, dtype=torch.float64)
    x = torch.randn(steps, batch, input_size, dtype=torch.float64, requires_grad=True)
    output: list[Tensor] = []
    theirs = (_flops(lambda: output.append(module(x)[0])), _flops(lambda: output[0].sum().backward()))
    return {providers.BASELINE: theirs, providers.OURS: _equations(cell, x.detach(), list(module.parameters()))}


@torch.no_grad()
def _equations(cell: str, x: Tensor, weights: list[Tensor]) -> tuple[int, int]:
    h0 = x.new_zeros(1, x.size(1), weights[1].size(1))
    results: list[Any] = []
    if cell == "lstm":
        forward = _flops(lambda: results.extend(reference.lstm_forward(x, None, h0, h0, weights, True, False, False, True)))
        output, _, _, gates, cells = results
        grad, states, saved = (output, None, None), (h0, h0), (gates, cells, True, False)
        backward = _flops(lambda: reference.lstm_backward(*grad, x, None, *states, weights, output, *saved, False, True, True))
    else:
        forward = _flops(lambda: results.extend(reference.gru_forward(x, None, h0, weights, True, False, True)))
        output, _, gates = results
        backward = _flops(
            lambda: reference.gru_backward(output, None, x, None, h0, weights, output, gates, True, False, True, True)
        )
    return forward, backward


def _flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def memory(case: Case, provider: str, seed: int) -> dict[str, int]:
    """Bytes that torch allocates: those kept between forward and backward, and the most at once in a training step.

    What oneDNN allocates for itself within a call is not among them.
    """
    problem = make_problem(case, seed)
    step = providers.make(provider).prepare(problem).call
    module = CLASSES[provider][case.cell](**case.options())
    module.load_state_dict(problem.weights)
    x = problem.input.clone().requires_grad_()
    kept: list[Any] = []
    step(), module(x)  # buffers that are made once
    activations, _ = allocated(lambda: kept.append(module(x)))
    kept.clear()
    _, peak = allocated(step)
    return {"activations": activations, "peak": peak}


def allocated(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes of tensors that ``call`` leaves behind, and the most that were alive at once, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del result
    return now, most
