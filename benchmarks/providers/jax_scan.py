"""JAX on the CPU: the layer's equations as ``lax.scan`` under ``jit``, gradients by ``jax.vjp``; the input's projection is one
product outside the scan.

Arrays are handed over without a copy and results are only converted for the gate. A step is compiled whole, with weights as
arguments.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cases import Case, Problem
from .base import Prepared, Provider, Results, named

#: XLA makes its threads once, as many as this variable says when its first array is made.
_THREADS_VARIABLE = "PJRT_NPROC"


def provider(name: str, device: str = "cpu") -> Provider:
    absent = None if importlib.util.find_spec("jax") is not None else "jax is not installed"
    if absent is None:
        absent = _start(torch.get_num_threads())
    version = None if importlib.util.find_spec("jax") is None else importlib.metadata.version("jax")
    return Provider(name, _prepare, _unsupported, absent=absent, version=version)


@functools.cache
def _threads() -> int:
    """The threads XLA has in this process."""
    return int(os.environ[_THREADS_VARIABLE])


def _start(threads: int) -> str | None:
    """Start XLA with that many threads; why it has another number of them if it was started before."""
    os.environ.setdefault(_THREADS_VARIABLE, str(threads))
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    if _threads() == threads:
        return None
    return f"XLA has {_threads()} threads in this process and cannot change that ({_THREADS_VARIABLE}); the run has {threads}"


def _unsupported(case: Case) -> str | None:
    if case.packed:
        return "a scan has no ragged sequences"
    if case.mode in ("forward", "backward"):
        return "forward and backward are compiled as one"
    return None if case.dtype == "float32" else "it is measured in float32"


def _prepare(problem: Problem) -> Prepared:
    import jax

    case = problem.case
    weights = {name: _array(value) for name, value in problem.weights.items()}
    x = _array(problem.input)
    layers = functools.partial(_layers, case)
    if case.mode == "streaming":
        return _prepare_streaming(case, jax.jit(layers), weights, x)
    zeros = tuple(jax.numpy.zeros((case.B, size), jax.numpy.float32) for size in _state_sizes(case))

    def inference(x: Any, weights: Any) -> Any:
        outputs, finals = layers(x, weights, [zeros] * _stack(case))
        return outputs, *_stacked(finals)

    def training(x: Any, weights: Any, grad_output: Any) -> Any:
        def differentiated(x: Any, weights: Any) -> Any:
            output, *finals = inference(x, weights)
            return output, finals

        output, gradients, finals = jax.vjp(differentiated, x, weights, has_aux=True)
        return output, *finals, *gradients(grad_output)

    arguments = (x, weights)
    if case.mode == "training":
        arguments = (*arguments, _array(problem.grad_output))
    compiled = jax.jit(training if case.mode == "training" else inference)

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def results() -> Results:
        values = list(call())
        if case.mode == "training":
            by_name = values.pop()
            values += [by_name[name] for name in problem.weights]
        return named(case.mode, [torch.from_dlpack(value) for value in values], list(problem.weights))

    return Prepared(call, results)


def _prepare_streaming(case: Case, layers: Callable[..., Any], weights: Any, x: Any) -> Prepared:
    import jax

    def begin() -> list[Any]:
        return [tuple(jax.numpy.zeros((case.B, size)) for size in _state_sizes(case))] * _stack(case)

    states = begin()

    def call() -> None:
        nonlocal states
        output, states = layers(first, weights, states)
        output.block_until_ready()

    def results() -> Results:
        states, outputs = begin(), []
        for step in range(x.shape[0]):
            output, states = layers(x[step : step + 1], weights, states)
            outputs.append(torch.from_dlpack(output)[0])
        return {"output": torch.stack(outputs)}

    first = x[:1]
    call()
    return Prepared(call, results)


# --- the equations ---------------------------------------------------------------------------------------------------------


def _layers(case: Case, x: Any, weights: dict[str, Any], initial: list[Any]) -> tuple[Any, list[Any]]:
    """x (T, B, I) -> output (T, B, D*P), and of each layer and direction the final (h,) or (h, c)."""
    import jax.numpy as jnp

    finals = []
    for layer in range(case.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 2 if case.bidirectional else 1]:
            own = {kind: weights.get(f"{kind}_l{layer}{suffix}") for kind in ("weight_ih", "weight_hh", "weight_hr")}
            own |= {kind: weights[f"{kind}_l{layer}{suffix}"] for kind in ("bias_ih", "bias_hh")}
            output, final = _scan(case.cell, x, own, initial[len(finals)], reverse=bool(suffix))
            outputs.append(output)
            finals.append(final)
        x = jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
    return x, finals


def _scan(cell: str, x: Any, w: dict[str, Any], initial: Any, reverse: bool) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh
    # A GRU's n weighs W_hn h + b_hn by r: only r and z take both biases at once.
    outside = w["bias_ih"] + w["bias_hh"] if cell == "lstm" else w["bias_ih"]
    projected = x @ w["weight_ih"].T + outside

    def lstm(state: Any, a: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(a + h @ w["weight_hh"].T, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        if w["weight_hr"] is not None:
            h = h @ w["weight_hr"].T
        return (h, c), h

    def gru(state: Any, a: Any) -> Any:
        (h,) = state
        x_r, x_z, x_n = jnp.split(a, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(h @ w["weight_hh"].T + w["bias_hh"], 3, axis=-1)
        z = sigmoid(x_z + h_z)
        h = (1 - z) * tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h
        return (h,), h

    final, output = jax.lax.scan(lstm if cell == "lstm" else gru, initial, projected, reverse=reverse)
    return output, final


def _state_sizes(case: Case) -> tuple[int, ...]:
    return (case.proj_size or case.H, case.H)[: 2 if case.cell == "lstm" else 1]


def _stack(case: Case) -> int:
    return case.num_layers * (2 if case.bidirectional else 1)


def _stacked(finals: list[Any]) -> list[Any]:
    import jax.numpy as jnp

    return [jnp.stack(states) for states in zip(*finals, strict=True)]


def _array(tensor: Tensor) -> Any:
    import jax

    return jax.dlpack.from_dlpack(tensor.contiguous())
