"""ONNX Runtime on the CPU: a graph of its own LSTM or GRU nodes with the case's weights, inputs and outputs bound beforehand."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from ..cases import Case, Problem
from .base import Prepared, Provider, Results

#: ONNX stacks the gates i, o, f, c and z, r, h where torch stacks i, f, g, o and r, z, n.
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_STATES = {"lstm": 2, "gru": 1}


def missing() -> str | None:
    """Why ONNX Runtime cannot be measured, or None if it can."""
    absent = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not installed" if absent else None


def version() -> str | None:
    if missing() is not None:
        return None
    import onnxruntime

    return onnxruntime.__version__


def provider(name: str, device: str = "cpu") -> Provider:
    keeps = "it keeps what it has allocated for its next call"
    return Provider(name, _prepare, _unsupported, absent=missing(), own_memory=keeps, version=version())


def _unsupported(case: Case) -> str | None:
    if case.mode not in ("inference", "streaming"):
        return "it does inference only"
    if case.proj_size:
        return "ONNX's LSTM has no projection"
    return None if case.dtype == "float32" else f"its nodes on the CPU are float32, not {case.dtype}"


def model(
    cell: str,
    weights: Mapping[str, Tensor],
    layers: int,
    bidirectional: bool = False,
    states: bool = False,
    lengths: bool = False,
) -> Any:
    """Nodes in a row: input x (T, B, I) -> y (T, D, B, H) and each layer's final states out0, out1, ... (D, B, H).

    ``weights`` is torch.nn's state_dict. ``states`` adds the inputs in0, in1, ..., zeros without it; ``lengths`` the input
    lengths (B,), int32.
    """
    from onnx import TensorProto, helper, numpy_helper

    directions = 2 if bidirectional else 1
    hidden, width = weights["weight_hh_l0"].size(1), _STATES[cell]

    def gates(kind: str, layer: int) -> numpy.ndarray:
        order = GATE_ORDER[cell]
        own = [weights[f"{kind}_l{layer}{suffix}"].chunk(len(order)) for suffix in ("", "_reverse")[:directions]]
        return torch.stack([torch.cat([parts[gate] for gate in order]) for parts in own]).numpy()

    def described(name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes, initializers = [], []

    def constant(name: str, value: numpy.ndarray) -> str:
        initializers.append(numpy_helper.from_array(numpy.ascontiguousarray(value), name))
        return name

    options: dict[str, Any] = {"linear_before_reset": 1} if cell == "gru" else {}
    if bidirectional:
        options["direction"] = "bidirectional"
    x = "x"
    for layer in range(layers):
        own = range(layer * width, (layer + 1) * width)
        matrices = [constant(f"{n}{layer}", gates(kind, layer)) for n, kind in (("W", "weight_ih"), ("R", "weight_hh"))]
        biases = numpy.concatenate([gates("bias_ih", layer), gates("bias_hh", layer)], axis=1)
        inputs = [x, *matrices, constant(f"B{layer}", biases), "lengths" if lengths else ""]
        inputs += [f"in{i}" for i in own] if states else []
        last = layer == layers - 1
        y = "y" if last else f"y{layer}"
        nodes.append(helper.make_node(cell.upper(), inputs, [y, *(f"out{i}" for i in own)], hidden_size=hidden, **options))
        if not last:  # (T, D, B, H) -> (T, B, D*H)
            nodes.append(helper.make_node("Transpose", [y], [f"turned{layer}"], perm=(0, 2, 1, 3)))
            shape = constant(f"shape{layer}", numpy.array([0, 0, directions * hidden], numpy.int64))
            x = f"x{layer + 1}"
            nodes.append(helper.make_node("Reshape", [f"turned{layer}", shape], [x]))
    names = range(layers * width)
    given = [described("x", "T", "B", weights["weight_ih_l0"].size(1))]
    given += [helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])] if lengths else []
    given += [described(f"in{i}", directions, "B", hidden) for i in names] if states else []
    made = [described("y", "T", directions, "B", hidden), *(described(f"out{i}", directions, "B", hidden) for i in names)]
    graph = helper.make_graph(nodes, "layers", given, made, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def session(graph: Any) -> Any:
    """An inference session on as many threads as torch has, that stops spinning when a call is done."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin on after a call would take the processor from whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _prepare(problem: Problem) -> Prepared:
    case = problem.case
    streaming = case.mode == "streaming"
    graph = model(case.cell, problem.weights, case.num_layers, case.bidirectional, streaming, case.packed)
    if streaming:
        return _prepare_streaming(problem, graph)
    directions = 2 if case.bidirectional else 1
    made = session(graph)
    final = (directions, case.B, case.H)
    outputs = [_value((case.T, directions, case.B, case.H))]
    outputs += [_value(final) for _ in range(case.num_layers * _STATES[case.cell])]
    binding = made.io_binding()
    binding.bind_ortvalue_input("x", _value_of(problem.padded_input().numpy()))
    if case.packed:
        binding.bind_ortvalue_input("lengths", _value_of(numpy.array(problem.lengths, numpy.int32)))
    for output, value in zip(made.get_outputs(), outputs, strict=True):
        binding.bind_ortvalue_output(output.name, value)

    def call() -> None:
        made.run_with_iobinding(binding)

    def results() -> Results:
        call()
        y, *finals = (torch.from_numpy(value.numpy().copy()) for value in outputs)
        output = y.transpose(1, 2).reshape(case.T, case.B, -1)
        width = _STATES[case.cell]
        states = {name: torch.cat(finals[i::width]) for i, name in enumerate(("h_n", "c_n")[:width])}
        return {"output": problem.packed(output), **states}

    return Prepared(call, results)


def _prepare_streaming(problem: Problem, graph: Any) -> Prepared:
    step = bound_step(graph, problem.case.B)

    def results() -> Results:
        fresh = bound_step(graph, problem.case.B)
        return {"output": torch.stack([fresh(x).clone() for x in problem.input])}

    return Prepared(functools.partial(step, problem.input[0]), results)


def bound_step(graph: Any, batch: int) -> Callable[[Tensor], Tensor]:
    """A step x (B, I) -> (B, H) from zero states: two sets of states in turn, each written from the other."""
    made = session(graph)
    shapes = {value.name: value.shape for value in [*made.get_inputs(), *made.get_outputs()]}

    def value(name: str) -> Any:
        return _value([{"T": 1, "B": batch}.get(size, size) for size in shapes[name]])

    names = [name.removeprefix("in") for name in shapes if name.startswith("in")]
    x_value, y_value = value("x"), value("y")
    states = [{name: value(f"in{name}") for name in names} for _ in range(2)]
    bindings = []
    for before, after in (states, states[::-1]):
        binding = made.io_binding()
        binding.bind_ortvalue_input("x", x_value)
        binding.bind_ortvalue_output("y", y_value)
        for name in names:
            binding.bind_ortvalue_input(f"in{name}", before[name])
            binding.bind_ortvalue_output(f"out{name}", after[name])
        bindings.append(binding)
    x_bound, y_bound = torch.from_numpy(x_value.numpy())[0], torch.from_numpy(y_value.numpy()).view(batch, -1)
    turn = 0
    last: Tensor | None = None

    def step(x: Tensor) -> Tensor:
        nonlocal turn, last
        if x is not last:
            x_bound.copy_(x)
            last = x
        made.run_with_iobinding(bindings[turn])
        turn = 1 - turn
        return y_bound

    return step


def _value(shape: Sequence[int]) -> Any:
    return _value_of(numpy.zeros(shape, numpy.float32))


def _value_of(array: numpy.ndarray) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(numpy.ascontiguousarray(array))
