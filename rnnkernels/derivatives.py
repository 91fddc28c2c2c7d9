"""Derivatives of the layer operators, shared by their autograd rules and by the Functions of :mod:`rnnkernels.autograd`.

First order is one call of the backward operator. Second order differentiates the reference equations twice from the *original
inputs*, since what forward saved is itself a function of them; it costs nothing until somebody asks for a second derivative.

With S states (LSTM h and c: 2; GRU h: 1) every forward operator takes ``(input, batch_sizes, *states, weights, *flags,
save_for_backward)`` and returns ``(output, *final_states, *saved)`` with S saved tensors; its backward operator takes
``(grad_output, *grad_finals, input, batch_sizes, *states, weights, output, *saved, *flags, needs_input_grad,
needs_weight_grads)`` and returns ``(grad_input, *grad_states, grad_weights)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import autocast
from .backends import reference
from .layout import N_STATES

#: The forward equations, differentiable to any order and in forward mode.
REFERENCE = {
    "lstm": autocast.disabled_within(reference.lstm_forward),
    "gru": autocast.disabled_within(reference.gru_forward),
}


class Saved(NamedTuple):
    """What a layer's forward keeps for its backward."""

    input: Tensor
    batch_sizes: Tensor | None
    states: Sequence[Tensor]
    weights: Sequence[Tensor]
    kept: Sequence[Tensor]  # output, gates and, for LSTM, cells
    flags: tuple[bool, ...]

    def backward_arguments(self, grads: Sequence[Tensor | None], needs_input: bool, needs_weights: bool) -> tuple:
        """The backward operator's arguments; ``grads`` are those of output and final states."""
        operands = (self.input, self.batch_sizes, *self.states, self.weights, *self.kept)
        return (*grads[: 1 + len(self.states)], *operands, *self.flags, needs_input, needs_weights)


def save(
    ctx,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    flags: tuple[bool, ...],
    output: Tensor,
    gates_and_cells: Sequence[Tensor],
) -> None:
    """Keep in ``ctx`` what :func:`saved` gives back."""
    ctx.mark_non_differentiable(*gates_and_cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, batch_sizes, *states, output, *gates_and_cells, *weights)
    ctx.n_states = len(states)
    ctx.flags = flags


def saved(ctx) -> Saved:
    input, batch_sizes, *rest = ctx.saved_tensors
    n = ctx.n_states
    return Saved(input, batch_sizes, states=rest[:n], weights=rest[2 * n + 1 :], kept=rest[n : 2 * n + 1], flags=ctx.flags)


def is_batch(grads: Sequence[Tensor | None]) -> bool:
    """Whether these are the batches of gradients of ``torch.autograd.grad(is_grads_batched=True)``, which no operator takes."""
    if torch.compiler.is_compiling():  # cannot trace the question; no traced gradient is one
        return False
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


@autocast.disabled_within
def batch_of_gradients(cell: str, layer: Saved, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of input, states and each weight for a batch of ``grads``, those of output and final states: the reference
    equations, computed once more and differentiated by torch's own operators."""
    with torch.enable_grad():
        # Views: a tensor that stands in two places has a gradient in each.
        primals = [tensor.view_as(tensor) for tensor in (layer.input, *layer.states, *layer.weights)]
        n = 1 + len(layer.states)
        outputs = REFERENCE[cell](primals[0], layer.batch_sizes, *primals[1:n], primals[n:], *layer.flags, False)
    given = [(output, grad) for output, grad in zip(outputs, grads, strict=False) if grad is not None]
    wanted = [primal for primal in primals if primal.requires_grad]
    found = torch.autograd.grad(
        [output for output, _ in given],
        wanted,
        [grad for _, grad in given],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,  # a cell state that is given back alone does not depend on the last projection
    )
    gradients = iter(found)
    return [next(gradients) if primal.requires_grad else None for primal in primals]


# --- autograd rules of the operators -------------------------------------------------------------------------------------


def register_forward(
    forward_op: torch._ops.OpOverload, backward_op: torch._ops.OpOverload, cell: str, library: torch.library.Library
) -> None:
    """Make ``forward_op`` differentiable by ``backward_op``."""
    n = N_STATES[cell]

    def setup_context(ctx, inputs, output) -> None:
        input, batch_sizes, *rest = inputs
        save(ctx, input, batch_sizes, rest[:n], rest[n], tuple(rest[n + 1 : -1]), output[0], output[1 + n :])

    def backward(ctx, *grads):
        needs_input, needs_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2 + n])
        layer = saved(ctx)
        grad_input, *grad_states, grad_weights = backward_op(*layer.backward_arguments(grads, needs_input, needs_weights))
        return (
            grad_input if needs_input else None,
            None,
            *grad_states,
            list(grad_weights) if needs_weights else [None] * len(layer.weights),
            *(None,) * (len(layer.flags) + 1),
        )

    torch.library.register_autograd(forward_op, backward, setup_context=setup_context, lib=library)


def register_backward(backward_op: torch._ops.OpOverload, cell: str, library: torch.library.Library) -> None:
    """Make ``backward_op`` differentiable by :func:`second_order`."""
    n = N_STATES[cell]

    def setup_context(ctx, inputs, output) -> None:
        grads, (input, batch_sizes, *rest) = inputs[: 1 + n], inputs[1 + n :]
        ctx.flags = tuple(rest[2 * n + 2 : -2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, *grads, input, *rest[:n], *rest[n])

    def backward(ctx, *second_grads):
        batch_sizes, *operands = ctx.saved_tensors
        first, weights = 2 * n + 2, operands[2 * n + 2 :]
        flat = [*second_grads[:-1], *(second_grads[-1] or [None] * len(weights))]
        result = second_order(cell, batch_sizes, operands, ctx.flags, flat)
        return (
            *result[: n + 2],  # output gradients, input
            None,  # batch_sizes
            *result[n + 2 : first],  # states
            result[first:],  # weights
            *(None,) * (1 + n),  # output and saved are functions of the inputs, and accounted for there
            *(None,) * (len(ctx.flags) + 2),
        )

    torch.library.register_autograd(backward_op, backward, setup_context=setup_context, lib=library)


@autocast.disabled_within
def second_order(
    cell: str,
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor | None],
    flags: tuple[bool, ...],
    second_grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The vector-Jacobian product of a layer's backward.

    ``operands`` are the gradients of output and final states, then input, states and weights; ``second_grads`` the gradients of
    backward's results (input, states, weights) -> one gradient per operand.
    """
    n_grads = 1 + N_STATES[cell]
    if not torch.is_grad_enabled():  # nobody will differentiate further: record no graph beyond what is needed here
        operands = [None if t is None else t.detach() for t in operands]
    primals = operands[n_grads:]

    def outputs(*primals: Tensor) -> tuple[Tensor, ...]:
        input, states, weights = primals[0], primals[1:n_grads], primals[n_grads:]
        return REFERENCE[cell](input, batch_sizes, *states, weights, *flags, False)[:n_grads]

    given = [i for i in range(n_grads) if operands[i] is not None]

    def gradients(*operands: Tensor) -> tuple[Tensor, ...]:
        values, vjp = torch.func.vjp(outputs, *operands[len(given) :])
        output_grads = [torch.zeros_like(value) for value in values]
        for i, grad in zip(given, operands, strict=False):
            output_grads[i] = grad
        return vjp(tuple(output_grads))

    _, vjp = torch.func.vjp(gradients, *(operands[i] for i in given), *primals)
    # The gradient of a result that backward was not asked for has that result's shape, (0,).
    unused = [g is None or g.numel() == 0 for g in second_grads]
    cotangents = zip(primals, second_grads, unused, strict=True)
    second = vjp(tuple(torch.zeros_like(p) if without else g for p, g, without in cotangents))
    result: list[Tensor | None] = [None] * n_grads
    for i, grad in zip(given, second, strict=False):
        result[i] = grad
    return result + list(second[len(given) :])
