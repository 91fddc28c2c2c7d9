"""torch.compile and torch.export take the functions whole, for all lengths and batch sizes, and keep the choice of backend."""

from __future__ import annotations

import pytest
import torch
from cases import Case, draw, evaluate, ours
from marks import every_backend
from oracle import assert_same_mathematics
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rnnkernels import functional, use_backend

CASES = [
    Case("lstm", num_layers=2, bidirectional=True, proj_size=3),
    Case("gru", num_layers=2, bidirectional=True),
    Case("lstm", lengths=(4, 2, 1)),
    Case("gru", lengths=(4, 2, 1), bidirectional=True),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No compiled code or recompilation count leaks from one test into another."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(cell: str, x: Tensor, weights: list[Tensor]) -> Tensor:
    return getattr(functional, cell)(x, None, weights)[0]


def weights_of(cell: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [w.requires_grad_() for w in draw(Case(cell, dtype=dtype)).weights.values()]


@every_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_compiled_call_gives_the_bits_of_an_eager_one(backend: str, case: Case) -> None:
    """Forward and backward in one graph; aot_eager runs the traced operators as they are."""
    problem = draw(case)
    batch_sizes = case.batch_sizes

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(input: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        structure = {"num_layers": case.num_layers, "bidirectional": case.bidirectional, "batch_sizes": batch_sizes}
        if case.cell == "gru":
            return functional.gru(input, states[0], weights, **structure)
        output, finals = functional.lstm(input, states, weights, has_projection=bool(case.proj_size), **structure)
        return output, *finals

    expected = evaluate(ours, problem)
    actual = evaluate(lambda _, input, states, weights: compiled(input, states, list(weights.values())), problem)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


@every_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_inductor_compiles_forward_and_backward(backend: str, cell: str) -> None:
    weights = weights_of(cell, torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, weights: list[Tensor]) -> Tensor:
        return (layer(cell, x.sin(), weights) * 2).square().sum()

    expected = torch.autograd.grad(loss(x, weights), (x, *weights))
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, weights), (x, *weights))
    for value, wanted in zip(actual, expected, strict=True):  # Inductor's own sin and square may round otherwise than torch's
        assert_same_mathematics(value, wanted)


@every_backend
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_new_lengths_and_batch_sizes_compile_at_most_once_more(backend: str, cell: str, requires_grad: bool) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    weights = [w.requires_grad_(requires_grad) for w in weights_of(cell)]
    for steps, batch in [(4, 3), (6, 2), (5, 3), (9, 7), (20, 5), (2, 4)]:
        x = torch.randn(steps, batch, 5, requires_grad=requires_grad)
        result = compiled(cell, x, weights)
        assert torch.equal(result, layer(cell, x, weights))
        if requires_grad:
            result.sum().backward()
    assert counter.frame_count <= 2


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_changing_the_backend_takes_effect_in_compiled_code(native_library: None, cell: str) -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    weights, x = [w.detach() for w in weights_of(cell)], torch.randn(4, 3, 5)

    def operators() -> set[str]:
        names = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"}
        return {name for name in names if name.startswith("rnnkernels.")}

    with use_backend("cpu"):
        compiled(cell, x, weights)
        assert operators() and not any("reference_" in name for name in operators())
    with use_backend("reference"):
        compiled(cell, x, weights)
        assert any("reference_" in name for name in operators())
    assert counter.frame_count == 2
    with use_backend("cpu"):
        compiled(cell, x, weights)
    assert counter.frame_count == 2, "switching back must find the code compiled before"


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_compiled_code_follows_autocast(backend: str, cell: str) -> None:
    weights, x = weights_of(cell), torch.randn(4, 3, 5)

    def autocast(x: Tensor, weights: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(cell, x, weights)

    expected = autocast(x, weights)
    actual = torch.compile(autocast, fullgraph=True, backend="aot_eager")(x, weights)
    assert actual.dtype == expected.dtype == (torch.bfloat16 if cell == "lstm" else torch.float32)
    assert torch.equal(actual, expected)
    expected_grads = torch.autograd.grad(expected.float().sum(), weights)
    for grad, wanted in zip(torch.autograd.grad(actual.float().sum(), weights), expected_grads, strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, wanted)
    with torch.autocast("cpu", torch.bfloat16):  # outside the compiled region, too
        outside = torch.compile(layer, fullgraph=True, backend="aot_eager")(cell, x, weights)
    assert torch.equal(outside, expected)


@pytest.mark.parametrize("cell", ["lstm_cell", "gru_cell"])
def test_a_loop_over_a_cell_compiles_whole(backend: str, cell: str) -> None:
    name = cell.removesuffix("_cell")
    weights = weights_of(name)
    x, h = torch.randn(4, 3, 5), torch.randn(3, 7)

    def loop(x: Tensor, h: Tensor) -> Tensor:
        state = (h, h) if name == "lstm" else h
        for step in x:
            state = getattr(functional, cell)(step, state, *weights)
        return state[0] if name == "lstm" else state

    expected, actual = loop(x, h), torch.compile(loop, fullgraph=True, backend="aot_eager")(x, h)
    assert torch.equal(actual, expected)
    pairs = zip(torch.autograd.grad(actual.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True)
    for grad, wanted in pairs:
        assert torch.equal(grad, wanted)


class Model(torch.nn.Module):
    """Weights kept by a module of the user's own."""

    def __init__(self, cell: str):
        super().__init__()
        self.cell = cell
        self.weights = torch.nn.ParameterList(draw(Case(cell)).weights.values())

    def forward(self, x: Tensor) -> Tensor:
        return layer(self.cell, x, list(self.weights))


@every_backend
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_export_keeps_one_operator_and_takes_any_length(backend: str, cell: str, strict: bool) -> None:
    model = Model(cell).eval()
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(4, 3, 5),), dynamic_shapes=({0: steps, 1: batch},), strict=strict)
    calls = [n for n in program.graph.nodes if n.op == "call_function" and str(n.target).startswith("rnnkernels.")]
    assert len(calls) == 1
    for shape in [(4, 3), (9, 2), (1, 1)]:
        x = torch.randn(*shape, 5)
        assert torch.equal(program.module()(x), model(x))


@pytest.mark.xfail(
    strict=True,
    raises=torch._dynamo.exc.TorchRuntimeError,
    reason="torch 2.13 cannot trace an autograd rule with setup_context under torch.func transforms inside torch.compile: it "
    "refuses the operators' rules and calls a Function's forward with a context. Transforms of compiled functions work.",
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_func_transforms_work_in_compiled_code(backend: str, cell: str) -> None:
    weights = [w.detach() for w in weights_of(cell, torch.float64)]
    x = torch.randn(6, 4, 3, 5, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return layer(cell, x, weights).square().sum()

    def per_sample(x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(loss))(x)

    assert_same_mathematics(torch.compile(per_sample, fullgraph=True, backend="aot_eager")(x), per_sample(x))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_same_tensor_in_two_places_compiles_and_sums_its_gradients(backend: str, cell: str) -> None:
    """Tied weights, and one tensor for h0 and c0."""
    case = Case(cell, input_size=7, bidirectional=True, dtype=torch.float64)
    w_ih, w_hh, b_ih, b_hh, *_ = (w.requires_grad_() for w in draw(case).weights.values())
    weights = [w_ih, w_ih, b_ih, b_ih, w_hh, w_ih, b_ih, b_hh]
    state = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, 7, dtype=torch.float64)

    def loss() -> Tensor:
        hx = (state, state) if cell == "lstm" else state
        return getattr(functional, cell)(x, hx, weights, bidirectional=True)[0].square().sum()

    leaves = [w_ih, w_hh, b_ih, b_hh, state]
    expected = torch.autograd.grad(loss(), leaves)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), leaves)
    for value, wanted in zip(actual, expected, strict=True):  # the sums over uses of a tensor have no order
        assert_same_mathematics(value, wanted)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_packed_data_without_states_compiles_for_any_lengths(backend: str, cell: str) -> None:
    weights = weights_of(cell)

    def packed(input: Tensor, batch_sizes: Tensor) -> Tensor:
        return getattr(functional, cell)(input, None, weights, batch_sizes=batch_sizes)[0]

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed, fullgraph=True, backend=counter)
    for lengths in [(4, 2, 1), (6, 6, 5, 1), (3, 3), (9,)]:
        case = Case(cell, lengths=lengths)
        input = draw(case).input
        expected, actual = packed(input, case.batch_sizes), compiled(input, case.batch_sizes)
        assert torch.equal(actual, expected)
        pairs = (torch.autograd.grad(value.square().sum(), weights) for value in (actual, expected))
        for grad, wanted in zip(*pairs, strict=True):
            assert torch.equal(grad, wanted)
    assert counter.frame_count <= 2
