"""Modules for problems, and streams as implementations of the oracle's kind."""

from __future__ import annotations

import torch
from cases import Case, Problem
from torch import Tensor

import rnnkernels


def module_for(problem: Problem, **options) -> rnnkernels.LSTM | rnnkernels.GRU:
    """This package's module with a problem's weights."""
    return _module(problem.case, problem.weights, **options)


def _module(case: Case, weights: dict[str, Tensor], **options) -> rnnkernels.LSTM | rnnkernels.GRU:
    module_class = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[case.cell]
    options |= {"proj_size": case.proj_size} if case.proj_size else {}
    module = module_class(case.input_size, case.hidden_size, case.num_layers, bias=case.bias, dtype=case.dtype, **options)
    module.load_state_dict(weights)
    return module


def streamed(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor], **options) -> tuple[Tensor, ...]:
    """The case one step at a time: an :data:`~cases.Implementation`."""
    stream = _module(case, weights).stream(case.batch, **options)
    stream.state = states if case.cell == "lstm" else states[0]
    output = torch.empty(case.output_shape, dtype=case.dtype)
    for x, y in zip(input, output, strict=True):
        stream.step(x, out=y)
    finals = stream.state if case.cell == "lstm" else (stream.state,)
    return output, *(final.to(case.dtype) for final in finals)
