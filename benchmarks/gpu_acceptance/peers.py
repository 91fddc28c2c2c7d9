"""Stage 8: other projects' Triton kernels, where they are installed. None is needed, none is contained here.

========  =================================================================================================================
TorchRL   ``LSTMModule`` and ``GRUModule`` with ``recurrent_backend="triton"``: float32 weights, products in TF32 or bfloat16
FlashRNN  ``flashrnn`` with ``backend="triton_fused"``: LSTM, heads of at most 64 units; the projection of the input, which it
          leaves to its caller, is added as one matrix product
========  =================================================================================================================

They are compared with torch.nn and our plans' choices on the same numbers, training steps. Both have their own weight layouts, so
their results are only looked at for NaN; times say nothing about exactness.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rnnkernels

from ..cases import TORCH_CLASSES, Case
from . import speed, timing
from .schedules import PRECISIONS, backend_of, cuda_missing, pretend_gpu, switched
from .stage import Row, Stage

_PACKAGES = {"TorchRL": "torchrl", "FlashRNN": "flashrnn"}

#: H and B.
_SHAPES = ((64, 16), (64, 256), (128, 64), (256, 64), (512, 16))

#: A training step on an input (T, B, I) and a gradient of the output (T, B, H).
Step = Callable[[Tensor, Tensor], object]


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    for peer, package in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            reason = f"the package {package} is not installed"
            stage.row(peer, functools.partial(dict, unsupported=reason))
            continue
        make = {"TorchRL": _torchrl, "FlashRNN": _flashrnn}[peer]
        for H, B in _SHAPES[:1] if stage.dry else _SHAPES:
            for precision in ("bfloat16", "tf32"):
                for cell in ("lstm", "gru"):
                    case = Case(cell, "training", 3 if stage.dry else speed.STEPS, B, H, H, dtype=PRECISIONS[precision][0])
                    stage.row(f"{peer}: {case}, {precision}", functools.partial(_measure, stage, make, precision, case))


def _measure(stage: Stage, make: Callable[[Case, torch.device], Step], precision: str, case: Case) -> Row:
    row: Row = {"case": case.as_dict(), "precision": precision}
    device = stage.torch_device
    with switched(precision):
        try:
            steps = {"peer": make(case, device)}
        except NotImplementedError as reason:
            return {**row, "unsupported": str(reason)}
        steps[speed.BASELINE] = _module_step(TORCH_CLASSES[case.cell](case.I, case.H).to(device, case.torch_dtype))
        ours = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[case.cell](case.I, case.H).to(device, case.torch_dtype)
        for backend, plan in speed.PLANS.items():
            if backend != "cuda" or cuda_missing() is None:
                steps[plan] = _on_backend(backend, _module_step(ours))
        x = torch.randn(case.T, case.B, case.I, device=device).to(case.torch_dtype)
        grad = torch.randn(case.T, case.B, case.H, device=device).to(case.torch_dtype)
        calls = {name: functools.partial(step, x, grad) for name, step in steps.items()}
        for call in calls.values():
            call()
        return {**row, "results": timing.wall_times(calls, speed.BASELINE, device, 0.5, 3)}


def _on_backend(backend: str, step: Step) -> Step:
    def on_backend(x: Tensor, grad: Tensor) -> object:
        with rnnkernels.use_backend(backend_of(backend)):
            return step(x, grad)

    return on_backend


def _module_step(module: nn.Module) -> Step:
    parameters = list(module.parameters())

    def step(x: Tensor, grad: Tensor) -> object:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(module(leaf)[0], [leaf, *parameters], grad)

    return step


def _torchrl(case: Case, device: torch.device) -> Step:
    from tensordict import TensorDict
    from torchrl.modules import GRUModule, LSTMModule

    module_class, states = (LSTMModule, ("h", "c")) if case.cell == "lstm" else (GRUModule, ("h",))
    module = module_class(
        input_size=case.I,
        hidden_size=case.H,
        in_keys=["x", *states],
        out_keys=["y", *(("next", name) for name in states)],
        recurrent_backend="triton",
        recurrent_compute_dtype=case.torch_dtype,
        default_recurrent_mode=True,
        device=device,
    )
    parameters = list(module.parameters())
    initial = {name: torch.zeros(case.B, case.T, 1, case.H, device=device) for name in states}
    resets = torch.zeros(case.B, case.T, 1, dtype=torch.bool, device=device)

    def step(x: Tensor, grad: Tensor) -> object:
        leaf = x.transpose(0, 1).float().requires_grad_()  # its layers keep float32 and put the batch first
        data = TensorDict({"x": leaf, **initial, "is_init": resets}, [case.B, case.T])
        return torch.autograd.grad(module(data)["y"], [leaf, *parameters], grad.transpose(0, 1).float())

    return step


def _flashrnn(case: Case, device: torch.device) -> Step:
    if case.cell != "lstm":
        raise NotImplementedError("FlashRNN has no Triton kernel for the GRU")
    if case.H > 64:
        raise NotImplementedError("FlashRNN's Triton kernel has heads of at most 64 units, and a layer of ours is one head")
    from flashrnn import flashrnn

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_(std=case.H**-0.5).to(case.torch_dtype).requires_grad_()

    w_ih, w_hh, bias = new(4 * case.H, case.I), new(4, 1, case.H, case.H), new(4, 1, case.H)

    def step(x: Tensor, grad: Tensor) -> object:
        leaf = x.detach().requires_grad_()
        projected = (leaf.transpose(0, 1) @ w_ih.t()).view(case.B, case.T, 4, 1, case.H)
        states, _ = flashrnn(projected, w_hh, bias, function="lstm", backend="triton_fused", dtype=case.dtype)
        output = states[0].reshape(case.B, case.T, case.H)  # (state, B, T, head, unit) but for the order of B and T
        return torch.autograd.grad(output, [leaf, w_ih, w_hh, bias], grad.transpose(0, 1).reshape(output.shape))

    return step
