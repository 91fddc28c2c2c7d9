"""Derivatives of every order and kind: autograd, torch.func, forward mode, checkpointing; against the written-out equations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Case, Implementation, draw, evaluate, ours
from marks import every_backend
from oracle import assert_same_mathematics, equations
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import rnnkernels
from rnnkernels import functional

Function = Callable[..., tuple[Tensor, ...]]

TINY = {"input_size": 2, "hidden_size": 3, "steps": 3, "batch": 2, "dtype": torch.float64}
CASES = [
    Case("lstm", **TINY),
    Case("gru", **TINY),
    Case("lstm", **TINY, bidirectional=True, proj_size=2, num_layers=2),
    Case("gru", **TINY, bidirectional=True, bias=False),
    Case("lstm", **TINY, lengths=(3, 1), bidirectional=True),
    Case("gru", **TINY, lengths=(3, 2, 2), num_layers=2),
]
#: Forward mode runs on the reference equations: a backend asked for by name refuses it, "auto" picks the reference.
forward_mode = pytest.mark.backends("auto", "reference")
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def operands_of(case: Case, seed: int = 0) -> list[Tensor]:
    """Input, states and weights, in one list."""
    problem = draw(case, seed)
    return [problem.input, *problem.states, *problem.weights.values()]


def as_function(implementation: Implementation, case: Case) -> Function:
    """The implementation as a function of what :func:`operands_of` lists."""
    n = len(case.state_shapes)
    names = list(case.weight_shapes)

    def function(*operands: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, operands[n + 1 :], strict=True))
        return implementation(case, operands[0], tuple(operands[1 : n + 1]), weights)

    return function


def loss_of(function: Function) -> Callable[..., Tensor]:
    """A scalar in which every output counts, each element differently, with derivatives of any order."""

    def loss(*operands: Tensor) -> Tensor:
        return sum(
            (value.sin() * torch.arange(1, value.numel() + 1, dtype=value.dtype).cos().view(value.shape)).sum()
            for value in function(*operands)
        )

    return loss


def assert_same(case: Case, compute: Callable[[Function], object]) -> None:
    """``compute`` gives the same tensors from our function as from the written-out equations."""
    actual, expected = (tree_leaves(compute(as_function(i, case))) for i in (ours, equations))
    assert actual
    assert any(value.any() for value in expected), "a comparison of zeros shows nothing"
    for i, (value, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_same_mathematics(value, wanted, f"result {i}")


# --- autograd ------------------------------------------------------------------------------------------------------------


@each_case
def test_gradcheck(backend: str, case: Case) -> None:
    operands = [t.requires_grad_() for t in operands_of(case)]
    assert torch.autograd.gradcheck(as_function(ours, case), operands)


@each_case
def test_gradgradcheck(backend: str, case: Case) -> None:
    operands = [t.requires_grad_() for t in operands_of(case)]
    assert torch.autograd.gradgradcheck(as_function(ours, case), operands, fast_mode=True)


@every_backend
@each_case
def test_gradient_penalty(backend: str, case: Case) -> None:
    """A loss that contains a gradient, as WGAN-GP has."""

    def compute(function: Function) -> list[Tensor]:
        operands = [t.requires_grad_() for t in operands_of(case)]
        loss = loss_of(function)(*operands)
        firsts = torch.autograd.grad(loss, operands, create_graph=True)
        return torch.autograd.grad(loss + sum(first.square().sum() for first in firsts), operands)

    assert_same(case, compute)


@each_case
def test_third_derivative(backend: str, case: Case) -> None:
    def compute(function: Function) -> list[Tensor]:
        operands = [t.requires_grad_() for t in operands_of(case)]
        value = loss_of(function)(*operands)
        for _ in range(2):
            value = sum(g.pow(3).sum() for g in torch.autograd.grad(value, operands, create_graph=True))
        return torch.autograd.grad(value, operands)

    assert_same(case, compute)


@every_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_derivative_with_tied_weights_and_an_input_made_from_h0(backend: str, cell: str) -> None:
    case = Case(cell, input_size=3, hidden_size=3, steps=2, batch=2, dtype=torch.float64)

    def compute(function: Function) -> list[Tensor]:
        _, h, *c, w_ih, _, b_ih, _ = operands_of(case)
        leaves = [h.requires_grad_(), w_ih.requires_grad_(), b_ih.requires_grad_()]
        input = (h * 2).sin().expand(2, 2, 3)  # the same numbers reach the layer on two ways
        loss = loss_of(function)(input, h, *c, w_ih, w_ih, b_ih, b_ih)
        firsts = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(first.square().sum() for first in firsts), leaves)

    assert_same(case, compute)


@each_case
def test_second_derivative_of_only_some_operands(backend: str, case: Case) -> None:
    """First weights without input, then input without weights: what backward is not asked for has no second derivative."""

    def compute(function: Function) -> list[Tensor]:
        results = []
        for wanted in (slice(0, 1), slice(1, 2), slice(-1, None)):
            operands = operands_of(case)
            leaves = [t.requires_grad_() for t in operands[wanted]]
            firsts = torch.autograd.grad(loss_of(function)(*operands), leaves, create_graph=True)
            results += torch.autograd.grad(sum(first.square().sum() for first in firsts), leaves)
        return results

    assert_same(case, compute)


@every_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_changing_a_saved_parameter_in_place_raises(backend: str, cell: str) -> None:
    case = Case(cell)
    operands = [t.requires_grad_() for t in operands_of(case)]
    for index in (0, 1, -4, -3):  # input, h0, w_ih, w_hh
        loss = loss_of(as_function(ours, case))(*operands)
        with torch.no_grad():
            operands[index].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@every_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_changing_a_result_in_place_changes_no_gradient_silently(backend: str, cell: str) -> None:
    """Final states may be changed; output is saved, so changing it raises."""
    case = Case(cell)
    operands = [t.requires_grad_() for t in operands_of(case)]
    function = as_function(ours, case)
    expected = torch.autograd.grad(function(*operands)[0].sum(), operands, allow_unused=True)
    output, h_n, *_ = function(*operands)
    h_n.mul_(2)
    actual = torch.autograd.grad(output.sum(), operands, allow_unused=True)
    for value, wanted in zip(actual, expected, strict=True):
        assert torch.equal(value, wanted)
    output, *_ = function(*operands)
    doubled = output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        doubled.sum().backward()


@every_backend
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_checkpointing_changes_no_bit(backend: str, case: Case, use_reentrant: bool) -> None:
    def checkpointed(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]):
        return checkpoint(ours, case, input, states, weights, use_reentrant=use_reentrant)

    problem = draw(case)
    if use_reentrant:  # it finds gradients of tensors that are arguments themselves, not of those inside a tuple

        def checkpointed(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]):
            return checkpoint(as_function(ours, case), input, *states, *weights.values(), use_reentrant=True)

    expected = evaluate(ours, problem)
    for name, value in evaluate(checkpointed, problem).items():
        assert torch.equal(value, expected[name]), name


# --- torch.func ----------------------------------------------------------------------------------------------------------


@every_backend
@each_case
def test_func_grad_and_vjp(backend: str, case: Case) -> None:
    operands = operands_of(case)
    everything = tuple(range(len(operands)))
    assert_same(case, lambda function: grad(loss_of(function), argnums=everything)(*operands))
    cotangents = draw(case, seed=1).grads
    assert_same(case, lambda function: vjp(function, *operands)[1](cotangents))


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_jacrev_of_jacrev(backend: str, case: Case) -> None:
    operands = operands_of(case)
    n = len(case.state_shapes)
    which = (0, 1, n + 2)  # input, h0, w_hh
    assert_same(case, lambda function: jacrev(jacrev(loss_of(function), argnums=which), argnums=which)(*operands))


@forward_mode
@each_case
def test_jvp_and_jacfwd(backend: str, case: Case) -> None:
    operands, tangents = operands_of(case), operands_of(case, seed=1)
    assert_same(case, lambda function: jvp(function, tuple(operands), tuple(tangents)))
    assert_same(case, lambda function: jacfwd(function, argnums=(0, 1))(*operands))


@forward_mode
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_hessian(backend: str, case: Case) -> None:
    operands = operands_of(case)
    assert_same(case, lambda function: hessian(loss_of(function), argnums=(0, 1))(*operands))


@forward_mode
@each_case
def test_forward_mode_through_dual_tensors(backend: str, case: Case) -> None:
    operands, tangents = operands_of(case), operands_of(case, seed=1)

    def compute(function: Function) -> list[Tensor]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(operands, tangents, strict=True)]
            return [part for value in function(*duals) for part in forward_ad.unpack_dual(value)]

    assert_same(case, compute)


def _copies(case: Case, n: int = 3) -> list[Tensor]:
    """Operands of n cases, stacked in front."""
    return [torch.stack(copies) for copies in zip(*(operands_of(case, seed) for seed in range(n)), strict=True)]


@every_backend
@each_case
def test_vmap_over_inputs_and_states(backend: str, case: Case) -> None:
    n = len(case.state_shapes)
    operands = [*_copies(case)[: n + 1], *operands_of(case)[n + 1 :]]
    in_dims = tuple(0 if i <= n else None for i in range(len(operands)))
    assert_same(case, lambda function: vmap(function, in_dims)(*operands))


@each_case
def test_vmap_over_inputs_only_and_over_an_inner_axis(backend: str, case: Case) -> None:
    operands = operands_of(case)
    stacked = torch.stack([operands_of(case, seed)[0] for seed in range(3)], dim=1)
    in_dims = (1, *(None for _ in operands[1:]))
    assert_same(case, lambda function: vmap(function, in_dims, out_dims=1)(stacked, *operands[1:]))


@each_case
def test_vmap_over_weights_is_an_ensemble(backend: str, case: Case) -> None:
    n = len(case.state_shapes)
    operands = [*operands_of(case)[: n + 1], *_copies(case)[n + 1 :]]
    in_dims = tuple(None if i <= n else 0 for i in range(len(operands)))
    assert_same(case, lambda function: vmap(function, in_dims)(*operands))


@each_case
def test_per_sample_gradients(backend: str, case: Case) -> None:
    n = len(case.state_shapes)
    operands = [*_copies(case)[: n + 1], *operands_of(case)[n + 1 :]]
    in_dims = tuple(0 if i <= n else None for i in range(len(operands)))
    everything = tuple(range(len(operands)))
    assert_same(case, lambda function: vmap(grad(loss_of(function), argnums=everything), in_dims)(*operands))


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_gradients_of_an_ensemble(backend: str, case: Case) -> None:
    operands = _copies(case)
    everything = tuple(range(len(operands)))
    assert_same(case, lambda function: vmap(grad(loss_of(function), argnums=everything))(*operands))


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_vmap_of_vmap(backend: str, case: Case) -> None:
    operands = operands_of(case)
    stacked = torch.randn(2, 3, *case.input_shape, dtype=case.dtype)
    inner = (0, *(None for _ in operands[1:]))
    assert_same(case, lambda function: vmap(vmap(function, inner), inner)(stacked, *operands[1:]))


@forward_mode
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_vmap_of_jvp(backend: str, case: Case) -> None:
    operands = tuple(operands_of(case))
    tangents = tuple(_copies(case))
    assert_same(case, lambda function: vmap(lambda *t: jvp(function, operands, t)[1])(*tangents))


# --- cells ---------------------------------------------------------------------------------------------------------------


def _cell(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Our cell as a one-step layer, to be compared with the equations."""
    flat, inner = list(weights.values()), [s.squeeze(0) for s in states]
    if case.cell == "gru":
        h = functional.gru_cell(input.squeeze(0), inner[0], *flat)
        return h.unsqueeze(0), h.unsqueeze(0)
    h, c = functional.lstm_cell(input.squeeze(0), tuple(inner), *flat)
    return h.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0)


CELL_CASES = [Case(cell, **TINY | {"steps": 1}, bias=bias) for cell in ("lstm", "gru") for bias in (True, False)]


@every_backend
@pytest.mark.parametrize("case", CELL_CASES, ids=str)
def test_cells_in_every_reverse_transform(backend: str, case: Case) -> None:
    operands = operands_of(case)
    everything = tuple(range(len(operands)))
    function = as_function(_cell, case)
    expected = as_function(equations, case)
    batched = (0, *(None for _ in operands[1:]))
    stacked = torch.stack([operands_of(case, seed)[0] for seed in range(3)])
    computations = [
        (lambda f: f(*operands)),
        (lambda f: grad(loss_of(f), argnums=everything)(*operands)),
        (lambda f: jacrev(jacrev(loss_of(f), argnums=(0, 1, 3)), argnums=(0, 1, 3))(*operands)),
        (lambda f: vmap(f, batched)(stacked, *operands[1:])),
        (lambda f: vmap(grad(loss_of(f), argnums=everything), batched)(stacked, *operands[1:])),
        (lambda f: vmap(grad(loss_of(f), argnums=everything))(*_copies(case))),
    ]
    for number, compute in enumerate(computations):
        pairs = zip(tree_leaves(compute(function)), tree_leaves(compute(expected)), strict=True)
        for value, wanted in pairs:
            assert_same_mathematics(value, wanted, f"computation {number}")
    leaves = [t.requires_grad_() for t in operands]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@forward_mode
@pytest.mark.parametrize("case", CELL_CASES, ids=str)
def test_cells_in_forward_mode(backend: str, case: Case) -> None:
    operands, tangents = tuple(operands_of(case)), tuple(operands_of(case, seed=1))
    for compute in (lambda f: jvp(f, operands, tangents), lambda f: hessian(loss_of(f), argnums=(0, 1))(*operands)):
        pairs = zip(
            tree_leaves(compute(as_function(_cell, case))),
            tree_leaves(compute(as_function(equations, case))),
            strict=True,
        )
        for value, wanted in pairs:
            assert_same_mathematics(value, wanted)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_results_of_a_cell_may_be_changed_in_place(backend: str, cell: str) -> None:
    case = Case(cell, **TINY | {"steps": 1})
    operands = [t.requires_grad_() for t in operands_of(case)]
    flat = [operands[0].squeeze(0), *(t.squeeze(0) for t in operands[1 : 1 + len(case.state_shapes)])]
    weights = operands[1 + len(case.state_shapes) :]

    def step() -> tuple[Tensor, ...]:
        if cell == "lstm":
            return functional.lstm_cell(flat[0], tuple(flat[1:]), *weights)
        return (functional.gru_cell(flat[0], flat[1], *weights),)

    expected = torch.autograd.grad(sum(2 * h.sum() for h in step()), operands)
    actual = torch.autograd.grad(sum(h.mul_(2).sum() for h in step()), operands)
    for value, wanted in zip(actual, expected, strict=True):
        assert torch.equal(value, wanted)


# --- modules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_backward_in_eval_mode_equals_train_mode(backend: str, cell: str) -> None:

    module = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[cell](5, 7, num_layers=2)
    x = torch.randn(4, 3, 5)
    grads = []
    for mode in (True, False):
        module.train(mode).zero_grad()
        module(x)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_per_sample_gradients_through_functional_call(backend: str, cell: str) -> None:

    module = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[cell](5, 7, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    x = torch.randn(6, 4, 5, dtype=torch.float64)  # 4 samples

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, parameters, (sample.unsqueeze(1),))[0].square().sum()

    detached = {name: p.detach() for name, p in parameters.items()}
    per_sample = vmap(grad(loss), in_dims=(None, 1))(detached, x)
    for b in range(4):
        module.zero_grad()
        module(x[:, b : b + 1])[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            assert_same_mathematics(per_sample[name][b], parameter.grad, f"{name}, sample {b}")
