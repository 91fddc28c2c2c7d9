"""LSTM and GRU as functions of tensors: layers, dropout between them, ``batch_first``, autocast, and the choice of backend.

The modules call these; so can anybody who keeps weights elsewhere. Weights come as one flat list in torch.nn's registration
order: for each layer, for each direction, ``w_ih, w_hh, [b_ih, b_hh], [w_hr]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import autocast, autograd, derivatives
from .backends import Backend, Request, aten, choose
from .calling import call_below_autograd
from .checks import check_cell, check_input, check_states
from .layout import GATES, operator, weights_per_direction


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    has_biases: bool = True,
    has_projection: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    train: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A stack of LSTM layers (equations L1-L8 of :mod:`rnnkernels.backends.reference`).

    L layers, D directions, H hidden size, P = projection size or H, N batch size, T steps, I input size.

    Args:
        input: (T, N, I), or (N, T, I) with ``batch_first``, or with ``batch_sizes`` the packed data (R, I) of a
            :class:`~torch.nn.utils.rnn.PackedSequence`. float32, float64, float16 or bfloat16.
        hx: h_0 (L*D, N, P) and c_0 (L*D, N, H); zeros if None.
        weights: flat list, see the module's description.
        has_projection: whether each direction ends with a projection weight w_hr (P, H).
        dropout: probability of zeroing an element of a layer's output before the next layer, when ``train``.
        batch_sizes: CPU int64 tensor (T,), how many sequences are active at each step.

    Returns:
        output (T, N, D*P), laid out as the input was, and (h_n, c_n), shaped as hx.

    Raises:
        RuntimeError: shapes that do not fit each other, tensors on different devices, an empty sequence, or (as
            ``UnsupportedRequest``) a backend asked for by name that cannot serve.
        TypeError: an input that is not floating point.
        ValueError: an input whose dtype is not the weights'; a weight list of the wrong length.
    """
    return _stack(
        "lstm",
        input,
        hx,
        weights,
        num_layers,
        has_biases,
        has_projection,
        bidirectional,
        dropout,
        train,
        batch_first,
        batch_sizes,
    )


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    dropout: float = 0.0,
    train: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers (equations G1-G5 of :mod:`rnnkernels.backends.reference`).

    Arguments, shapes and errors as for :func:`lstm`, with the one state h_0 (L*D, N, H) and no projection.

    Returns:
        output (T, N, D*H), laid out as the input was, and h_n, shaped as hx.
    """
    states = None if hx is None else (hx,)
    output, (h_n,) = _stack(
        "gru",
        input,
        states,
        weights,
        num_layers,
        has_biases,
        False,
        bidirectional,
        dropout,
        train,
        batch_first,
        batch_sizes,
    )
    return output, h_n


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step: input (N, I), hx = h, c each (N, H), w_ih (4H, I), w_hh (4H, H), biases (4H,) -> h, c each (N, H)."""
    h, c = _cell("lstm", input, hx, (w_ih, w_hh, b_ih, b_hh))
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step: input (N, I), hx (N, H), w_ih (3H, I), w_hh (3H, H), biases (3H,) -> h (N, H)."""
    return _cell("gru", input, (hx,), (w_ih, w_hh, b_ih, b_hh))[0]


# --- shared by both cells ------------------------------------------------------------------------------------------------


def _stack(
    cell: str,
    input: Tensor,
    hx: tuple[Tensor, ...] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    has_biases: bool,
    has_projection: bool,
    bidirectional: bool,
    dropout: float,
    train: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    directions = 2 if bidirectional else 1
    per_layer = weights_per_direction(has_biases, has_projection) * directions
    if len(weights) != per_layer * num_layers:
        raise ValueError(
            f"expected {per_layer * num_layers} weights for {num_layers} layer(s) of {per_layer}, got {len(weights)}"
        )
    hidden_size = weights[0].size(0) // GATES[cell]
    state_size = weights[1].size(1)  # what recurs: the projection's size, or hidden_size
    swap_axes = batch_first and batch_sizes is None
    if swap_axes and input.dim() == 3:
        input = input.transpose(0, 1)
    batch = check_input(input, batch_sizes, weights)
    if batch_sizes is not None and hx is not None and torch.compiler.is_compiling():
        batch = hx[0].size(1)  # what batch_sizes holds is not known here; the operator compares
    widths = (state_size, hidden_size) if cell == "lstm" else (hidden_size,)
    shapes = [(num_layers * directions, batch, width) for width in widths]
    if hx is None:
        zeros = input.new_zeros(shapes[0])  # one for h and c, but for an LSTM with a projection
        states = tuple(zeros if shape == shapes[0] else input.new_zeros(shape) for shape in shapes)
    else:
        states = tuple(hx)
        check_states(states, shapes, input)

    device_type = input.device.type
    lowered = autocast.active(device_type)
    if lowered:
        dtype = autocast.compute_dtype(cell, device_type, states, (input, *weights))
        input, states, weights = input.to(dtype), tuple(s.to(dtype) for s in states), [w.to(dtype) for w in weights]
    with torch.autocast(device_type, enabled=False) if lowered else nullcontext():
        tracing = _tracing()
        structure = (state_size if has_projection else 0, num_layers, bidirectional, batch_sizes is not None)
        backend = choose(Request(cell, input.device, input.dtype, input.size(-1), hidden_size, *structure, *tracing))
        if backend.family is None:
            output, *finals = aten.forward(
                cell, input, batch_sizes, states, weights, has_biases, num_layers, dropout, train, bidirectional
            )
        else:
            flags = (has_biases, has_projection, bidirectional) if cell == "lstm" else (has_biases, bidirectional)
            output, layers = input, []
            for layer in range(num_layers):
                if layer > 0 and train and dropout > 0:
                    output = torch.dropout(output, dropout, True)
                first = layer * directions
                own_states = states if num_layers == 1 else tuple(s[first : first + directions] for s in states)
                own_weights = weights[layer * per_layer : (layer + 1) * per_layer]
                output, *own_finals = _layer(cell, backend, tracing, flags, output, batch_sizes, own_states, own_weights)
                layers.append(own_finals)
            finals = layers[0] if num_layers == 1 else [torch.cat(final) for final in zip(*layers, strict=True)]
    return (output.transpose(0, 1) if swap_axes else output), tuple(finals)


def _layer(
    cell: str,
    backend: Backend,
    tracing: _Tracing,
    flags: tuple[bool, ...],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    """One layer on an operator backend -> output and the final states."""
    n_results = 1 + len(states)
    if tracing.forward_ad:
        return derivatives.REFERENCE[cell](input, batch_sizes, *states, weights, *flags, False)[:n_results]
    if tracing.transformed or _needs_grad(input, *states, *weights):
        return autograd.record(cell, backend.family, flags, batch_sizes, input, states, weights)
    op = operator(backend.family, f"{cell}_forward")
    return call_below_autograd(op, input, batch_sizes, *states, weights, *flags, False)[:n_results]


def _cell(
    cell: str, input: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, ...]:
    check_cell(cell, input, states, weights)
    weights = _both_biases(*weights)
    device_type = input.device.type
    present = [w for w in weights if w is not None]
    lowered = autocast.active(device_type)
    if lowered:
        dtype = autocast.compute_dtype(f"{cell}_cell", device_type, states, (input, *present))
        input, states = input.to(dtype), tuple(s.to(dtype) for s in states)
        weights = tuple(None if w is None else w.to(dtype) for w in weights)
        present = [w for w in weights if w is not None]
    with torch.autocast(device_type, enabled=False) if lowered else nullcontext():
        tracing = _tracing()
        structure = (0, 1, False, False)  # no projection, one layer, one direction, not packed
        sizes = (weights[0].size(1), weights[1].size(1))
        backend = choose(Request(cell, input.device, input.dtype, *sizes, *structure, *tracing, True))
        if backend.family is None:
            return aten.cell_forward(cell, input, states, weights)
        n_states = len(states)
        flags = (len(present) == 4, False, False) if cell == "lstm" else (len(present) == 4, False)
        if tracing.forward_ad:
            return derivatives.REFERENCE[cell](input, None, *states, present, *flags, False)[1 : 1 + n_states]
        if tracing.transformed or _needs_grad(input, *states, *present):
            return autograd.record(cell, backend.family, flags, None, input, states, present, one_step=True)
        op = operator(backend.family, f"{cell}_forward")
        return call_below_autograd(op, input, None, *states, present, *flags, False)[1 : 1 + n_states]


def request(op: str, input: Tensor, weights: Sequence[Tensor], **structure) -> Request:
    """What a call of ``op`` ("lstm", "gru", "lstm_cell" or "gru_cell") would ask of a backend, as autocast and torch.func
    transforms now stand. ``structure``: the other fields of :class:`~rnnkernels.backends.Request`."""
    device_type, dtype = input.device.type, input.dtype
    if autocast.active(device_type):
        dtype = autocast.compute_dtype(op, device_type, (input,), weights)
    one_step = op.endswith("_cell")
    return Request(op.removesuffix("_cell"), input.device, dtype, **structure, **_tracing()._asdict(), one_step=one_step)


class _Tracing(NamedTuple):
    """What else than plain eager execution is going on; the fields are :class:`~rnnkernels.backends.Request`'s."""

    transformed: bool
    forward_ad: bool


_PLAIN = _Tracing(False, False)


def _tracing() -> _Tracing:
    if torch.compiler.is_compiling():
        return _PLAIN
    return _Tracing(torch._C._are_functorch_transforms_active(), forward_ad._current_level >= 0)


def _both_biases(
    w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The operators take two biases or none; a cell may have lost one of them."""
    if (b_ih is None) != (b_hh is None):
        b_ih = torch.zeros_like(b_hh) if b_ih is None else b_ih
        b_hh = torch.zeros_like(b_ih) if b_hh is None else b_hh
    return w_ih, w_hh, b_ih, b_hh


def _needs_grad(*tensors: Tensor) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop: any() over a generator takes twice the time
            if tensor.requires_grad:
                return True
    return False
