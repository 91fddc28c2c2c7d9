"""``torch.autograd.Function``s of the layers and cells.

They are what :mod:`rnnkernels.functional` applies, by :func:`record`, when a gradient may be needed, and all they do is call
operators: ``LSTMFunction.forward`` the forward operator of a backend family, ``LSTMFunction.backward`` the backward operator of
the same family. Flags and weights are flat, in the order of :mod:`rnnkernels.layout`.

Eager calls of plain tensors take the same Functions written in C++ (csrc/bindings/recording.h), which cost a quarter of the time
that entering Python twice does; :data:`reason` says why they are not there, if they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library, derivatives, ops  # noqa: F401  (ops registers the operators these call)
from .calling import apply, call_below_autograd, traced
from .layout import N_STATES, operator


class LSTMFunction(torch.autograd.Function):
    """One LSTM layer, both directions.

    ``LSTMFunction.apply(family, has_biases, has_projection, bidirectional, batch_sizes, input, h0, c0, *weights)`` returns
    ``(output, h_n, c_n, gates, cells)``; the last two are what backward keeps. Shapes and dtypes: :mod:`rnnkernels.ops`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        family: str,
        has_biases: bool,
        has_projection: bool,
        bidirectional: bool,
        batch_sizes: Tensor | None,
        input: Tensor,
        h0: Tensor,
        c0: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        op = operator(family, "lstm_forward")
        flags = (has_biases, has_projection, bidirectional)
        return call_below_autograd(op, input, batch_sizes, h0, c0, weights, *flags, True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.family, *flags, batch_sizes, input, h0, c0 = inputs[:8]
        derivatives.save(ctx, input, batch_sizes, (h0, c0), inputs[8:], tuple(flags), output[0], output[3:])

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        needs_input, needs_weights = ctx.needs_input_grad[5], any(ctx.needs_input_grad[8:])
        layer = derivatives.saved(ctx)
        d_input, d_h0, d_c0, *d_weights = layer_backward("lstm", ctx.family, layer, grads, needs_input, needs_weights)
        return *(None,) * 5, d_input, d_h0, d_c0, *d_weights


class GRUFunction(torch.autograd.Function):
    """One GRU layer, both directions.

    ``GRUFunction.apply(family, has_biases, bidirectional, batch_sizes, input, h0, *weights)`` returns ``(output, h_n, gates)``;
    the last is what backward keeps. Shapes and dtypes: :mod:`rnnkernels.ops`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        family: str,
        has_biases: bool,
        bidirectional: bool,
        batch_sizes: Tensor | None,
        input: Tensor,
        h0: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        op = operator(family, "gru_forward")
        return call_below_autograd(op, input, batch_sizes, h0, weights, has_biases, bidirectional, True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.family, *flags, batch_sizes, input, h0 = inputs[:6]
        derivatives.save(ctx, input, batch_sizes, (h0,), inputs[6:], tuple(flags), output[0], output[2:])

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        needs_input, needs_weights = ctx.needs_input_grad[4], any(ctx.needs_input_grad[6:])
        layer = derivatives.saved(ctx)
        d_input, d_h0, *d_weights = layer_backward("gru", ctx.family, layer, grads, needs_input, needs_weights)
        return *(None,) * 4, d_input, d_h0, *d_weights


class LSTMCellFunction(torch.autograd.Function):
    """One LSTM step: the layer operator without axes for steps and directions.

    ``LSTMCellFunction.apply(family, input, h0, c0, *weights)``, input (N, I), h0 and c0 (N, H), weights w_ih, w_hh and either
    both biases or none, returns ``(h, c, gates, cells)``; the last two are what backward keeps.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(family: str, input: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        op = operator(family, "lstm_forward")
        flags = (len(weights) == 4, False, False)
        return call_below_autograd(op, input, None, h0, c0, weights, *flags, True)[1:]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.family, input, h0, c0, *weights = inputs
        flags = (len(weights) == 4, False, False)
        # Backward reads output only to know the state before steps 1, 2, …: one step has none, and h0 stands in, so that a
        # caller may change h in place.
        derivatives.save(ctx, input, None, (h0, c0), weights, flags, output=h0, gates_and_cells=output[2:])

    @staticmethod
    def backward(ctx, d_h: Tensor | None, d_c: Tensor | None, *_):
        needs_input, needs_weights = ctx.needs_input_grad[1], any(ctx.needs_input_grad[4:])
        grads = (None, d_h, d_c)
        return None, *layer_backward("lstm", ctx.family, derivatives.saved(ctx), grads, needs_input, needs_weights)


class GRUCellFunction(torch.autograd.Function):
    """One GRU step: the layer operator without axes for steps and directions.

    ``GRUCellFunction.apply(family, input, h0, *weights)``, input (N, I), h0 (N, H), weights w_ih, w_hh and either both biases
    or none, returns ``(h, gates)``; the last is what backward keeps.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(family: str, input: Tensor, h0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        op = operator(family, "gru_forward")
        return call_below_autograd(op, input, None, h0, weights, len(weights) == 4, False, True)[1:]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.family, input, h0, *weights = inputs
        flags = (len(weights) == 4, False)
        derivatives.save(ctx, input, None, (h0,), weights, flags, output=h0, gates_and_cells=output[1:])  # h0: as for LSTM

    @staticmethod
    def backward(ctx, d_h: Tensor | None, _):
        needs_input, needs_weights = ctx.needs_input_grad[1], any(ctx.needs_input_grad[3:])
        return None, *layer_backward("gru", ctx.family, derivatives.saved(ctx), (None, d_h), needs_input, needs_weights)


class BackwardFunction(torch.autograd.Function):
    """A layer's backward as a differentiable function, for second and higher derivatives.

    ``BackwardFunction.apply(cell, family, flags, needs_input, needs_weights, batch_sizes, *operands)`` with operands the
    gradients of output and final states, then input, states, output, saved tensors and weights, returns the backward
    operator's results, flat.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str,
        family: str,
        flags: tuple[bool, ...],
        needs_input: bool,
        needs_weights: bool,
        batch_sizes: Tensor | None,
        *operands: Tensor | None,
    ) -> tuple[Tensor, ...]:
        n = N_STATES[cell]
        grads, (input, *rest) = operands[: n + 1], operands[n + 1 :]
        layer = derivatives.Saved(input, batch_sizes, rest[:n], rest[2 * n + 1 :], rest[n : 2 * n + 1], flags)
        arguments = layer.backward_arguments(grads, needs_input, needs_weights)
        *results, d_weights = call_below_autograd(operator(family, f"{cell}_backward"), *arguments)
        return *results, *d_weights

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.cell, _, ctx.flags, _, _, batch_sizes, *operands = inputs
        n = N_STATES[ctx.cell]
        weights = operands[3 * n + 3 :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, *operands[: 2 * n + 2], *weights)
        ctx.n_weights = len(weights)

    @staticmethod
    def backward(ctx, *second_grads: Tensor | None):
        batch_sizes, *operands = ctx.saved_tensors
        n = N_STATES[ctx.cell]
        missing = (None,) * (1 + n + ctx.n_weights - len(second_grads))
        result = derivatives.second_order(ctx.cell, batch_sizes, operands, ctx.flags, (*second_grads, *missing))
        kept = (None,) * (n + 1)  # output and saved are functions of the inputs, and accounted for there
        return *(None,) * 6, *result[: 2 * n + 2], *kept, *result[2 * n + 2 :]


def record(
    cell: str,
    family: str,
    flags: tuple[bool, ...],
    batch_sizes: Tensor | None,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    one_step: bool = False,
) -> Sequence[Tensor]:
    """Apply the Function of a layer, or with ``one_step`` of a cell -> output and final states, of a cell only these."""
    if not traced():
        results = _record(cell, family, flags, one_step, batch_sizes, input, states, weights)
        if results is not NotImplemented:
            return results
    if one_step:
        return apply(_CELL_FUNCTIONS[cell], family, input, *states, *weights)[: len(states)]
    return apply(_LAYER_FUNCTIONS[cell], family, *flags, batch_sizes, input, *states, *weights)[: 1 + len(states)]


_LAYER_FUNCTIONS = {"lstm": LSTMFunction, "gru": GRUFunction}
_CELL_FUNCTIONS = {"lstm": LSTMCellFunction, "gru": GRUCellFunction}


_eager, reason = _library.load_eager()
_record: Callable[..., Any] = _library.declines if _eager is None else _eager.record


# --- backward ------------------------------------------------------------------------------------------------------------


def layer_backward(
    cell: str,
    family: str,
    layer: derivatives.Saved,
    grads: Sequence[Tensor | None],
    needs_input: bool,
    needs_weights: bool,
) -> list[Tensor | None]:
    """-> gradients of input, states and each weight, None where not needed."""
    if derivatives.is_batch(grads):
        return derivatives.batch_of_gradients(cell, layer, grads)
    if torch.is_grad_enabled():  # somebody may differentiate these gradients
        d_input, *rest = apply(
            BackwardFunction,
            cell,
            family,
            layer.flags,
            needs_input,
            needs_weights,
            layer.batch_sizes,
            *grads[: 1 + len(layer.states)],
            layer.input,
            *layer.states,
            *layer.kept,
            *layer.weights,
        )
    else:
        arguments = layer.backward_arguments(grads, needs_input, needs_weights)
        d_input, *d_states, d_weights = call_below_autograd(operator(family, f"{cell}_backward"), *arguments)
        rest = [*d_states, *d_weights]
    missing = [] if needs_weights else [None] * len(layer.weights)
    return [d_input if needs_input else None, *rest, *missing]
