r"""The equations of LSTM and GRU, forward and backward, in plain torch operations.

This file is the law: every other backend cites these numbers and is tested against these functions. Symbols: x is the
input of a step, a prime marks the value before the step (h', c'), s is the logistic sigmoid, * is elementwise, d(v) is the
gradient of the loss with respect to v. Gates are stacked in torch's order: LSTM i, f, g, o; GRU r, z, n.

LSTM forward                                     LSTM backward, given d(r) or d(h), and d(c) from the step after
  L1  a = W_ih x + b_ih + W_hh h' + b_hh           LB8  d(h) = W_hr^T d(r);  d(W_hr) += d(r) h^T
  L2  i = s(a_i)                                   LB7  d(o) = d(h) * tanh(c);  d(c) += d(h) * o * (1 - tanh(c)^2)
  L3  f = s(a_f)                                   LB6  d(i) = d(c) * g;  d(f) = d(c) * c';  d(g) = d(c) * i;
  L4  g = tanh(a_g)                                     d(c') = d(c) * f
  L5  o = s(a_o)                                   LB2-5 d(a_v) = d(v) * v * (1 - v) for v = i, f, o;
  L6  c = f * c' + i * g                                d(a_g) = d(g) * (1 - g^2)
  L7  h = o * tanh(c)                              LB1  d(x) = W_ih^T d(a);  d(h') = W_hh^T d(a);
  L8  r = W_hr h  (projected layers: r is the           d(W_ih) += d(a) x^T;  d(W_hh) += d(a) h'^T;
      output and takes the place of h in L1)            d(b_ih) += d(a);  d(b_hh) += d(a)

GRU forward                                      GRU backward, given d(h)
  G1  r = s(W_ir x + b_ir + W_hr h' + b_hr)        GB5  d(n) = d(h) * (1 - z);  d(z) = d(h) * (h' - n);  d(h') = d(h) * z
  G2  z = s(W_iz x + b_iz + W_hz h' + b_hz)        GB4  d(a_n) = d(n) * (1 - n^2);  d(q) = d(a_n) * r;  d(r) = d(a_n) * q
  G3  q = W_hn h' + b_hn                           GB1-2 d(a_v) = d(v) * v * (1 - v) for v = r, z
  G4  n = tanh(W_in x + b_in + r * q)              GB3  input side d(a) = [d(a_r), d(a_z), d(a_n)],
  G5  h = (1 - z) * n + z * h'                          hidden side d(u) = [d(a_r), d(a_z), d(q)];
                                                        d(x) = W_ih^T d(a);  d(h') += W_hh^T d(u);
                                                        d(W_ih) += d(a) x^T;  d(W_hh) += d(u) h'^T;
                                                        d(b_ih) += d(a);  d(b_hh) += d(u)

The forward functions use no in-place operation, so autograd can differentiate them to any order: that is what second
derivatives and forward-mode derivatives of every backend are computed with. The backward functions are written out by hand.
docs/derivation.md derives them. Sources: Hochreiter & Schmidhuber 1997 and Gers et al. 2000 for LSTM, Cho et al. 2014 for GRU
(in the form where r multiplies W_hn h' + b_hn, as cuDNN and torch.nn have it).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..layout import DirectionWeights, split_directions, state_dtype

# One step's tensors: each has the step's rows first.
Rows = tuple[Tensor, ...]


# --- cells: one step, forward and backward -----------------------------------------------------------------------------


def lstm_step(x: Tensor, h: Tensor, c: Tensor, w: DirectionWeights) -> tuple[Tensor, Tensor, Tensor]:
    """L1-L8. x (n, I), h (n, P), c (n, H) -> h (n, P), c (n, H), gates i, f, g, o (n, 4, H)."""
    a = _linear(x, w.w_ih, w.b_ih) + _linear(h, w.w_hh, w.b_hh)  # L1
    a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)
    i, f, g, o = a_i.sigmoid(), a_f.sigmoid(), a_g.tanh(), a_o.sigmoid()  # L2-L5
    c = f * c + i * g  # L6
    h = o * c.tanh()  # L7
    if w.w_hr is not None:
        h = _linear(h, w.w_hr, None)  # L8
    return h, c, torch.stack((i, f, g, o), dim=-2)


def lstm_step_backward(
    d_h: Tensor, d_c: Tensor, gates: Tensor, c: Tensor, c_before: Tensor, w: DirectionWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LB8-LB1 up to d(a). d_h (n, P) is d(r) when projected -> d(h') (n, P), d(c') (n, H), d(a) (n, 4H), h (n, H)."""
    i, f, g, o = gates.unbind(dim=-2)
    tanh_c = c.tanh()
    if w.w_hr is not None:
        d_h = d_h @ w.w_hr  # LB8
    d_o = d_h * tanh_c  # LB7
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i, d_f, d_g = d_c * g, d_c * c_before, d_c * i  # LB6
    d_a = torch.cat((d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g * g), d_o * o * (1 - o)), dim=-1)  # LB2-5
    return d_a @ w.w_hh, d_c * f, d_a, o * tanh_c  # LB1


def gru_step(x: Tensor, h: Tensor, w: DirectionWeights) -> tuple[Tensor, Tensor]:
    """G1-G5. x (n, I), h (n, H) -> h (n, H), gates r, z, n, q (n, 4, H)."""
    x_r, x_z, x_n = _linear(x, w.w_ih, w.b_ih).chunk(3, dim=-1)
    h_r, h_z, q = _linear(h, w.w_hh, w.b_hh).chunk(3, dim=-1)  # G3
    r = (x_r + h_r).sigmoid()  # G1
    z = (x_z + h_z).sigmoid()  # G2
    n = (x_n + r * q).tanh()  # G4
    h = (1 - z) * n + z * h  # G5
    return h, torch.stack((r, z, n, q), dim=-2)


def gru_step_backward(d_h: Tensor, gates: Tensor, h_before: Tensor, w: DirectionWeights) -> tuple[Tensor, Tensor, Tensor]:
    """GB5-GB3 up to d(a), d(u). -> d(h') (n, H), d(a) (n, 3H) of the input side, d(u) (n, 3H) of the hidden side."""
    r, z, n, q = gates.unbind(dim=-2)
    d_n, d_z = d_h * (1 - z), d_h * (h_before - n)  # GB5
    d_an = d_n * (1 - n * n)  # GB4
    d_q, d_r = d_an * r, d_an * q
    d_ar, d_az = d_r * r * (1 - r), d_z * z * (1 - z)  # GB1-2
    d_u = torch.cat((d_ar, d_az, d_q), dim=-1)
    return d_h * z + d_u @ w.w_hh, torch.cat((d_ar, d_az, d_an), dim=-1), d_u  # GB3


# --- layers: all steps, both directions ---------------------------------------------------------------------------------


def accepts_one_step(layer: Callable) -> Callable:
    """Let a layer's forward or backward take one step of one direction without the axes for steps and directions."""
    names = list(inspect.signature(layer).parameters)

    @functools.wraps(layer)
    def wrapper(*args):
        arguments = dict(zip(names, args, strict=True))
        if arguments["input"].dim() == 3 or arguments["batch_sizes"] is not None:
            return layer(*args)
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                arguments[name] = value[None, None] if name in ("gates", "cells") else value[None]
        return tuple(_without_steps(result) for result in layer(*arguments.values()))

    return wrapper


def _without_steps(result: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(result, list) or result.dim() == 1:  # weight gradients, and results that were not asked for
        return result
    # (1, N, ·), or (1, 1, N, ·) and (1, 1, N, 4, H) of cells and gates. A copy: operators return no views.
    return (result[0] if result.dim() == 3 else result[0, 0]).clone()


@accepts_one_step
def lstm_forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    has_projection: bool,
    bidirectional: bool,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One LSTM layer; the operator's contract is in :mod:`rnnkernels.ops`. Differentiable to any order."""
    dtype = state_dtype(input.dtype)
    xs = _steps(input.to(dtype), batch_sizes)
    outputs, final_h, final_c, gates, cells = [], [], [], [], []
    for d, w in enumerate(_directions(weights, dtype, has_biases, has_projection, bidirectional)):

        def step(carry: Rows, item: Rows, w: DirectionWeights = w) -> tuple[Rows, Rows]:
            h, c, saved = lstm_step(item[0], *carry, w)
            return (h, c), (h, c, saved)

        (h_n, c_n), emitted = _scan(step, (h0[d].to(dtype), c0[d].to(dtype)), [(x,) for x in xs], reverse=d == 1)
        h, c, saved = zip(*emitted, strict=True)
        outputs.append(_join(h, batch_sizes))
        final_h.append(h_n)
        final_c.append(c_n)
        if save_for_backward:
            gates.append(_join(saved, batch_sizes))
            cells.append(_join(c, batch_sizes))
    return (
        torch.cat(outputs, dim=-1).to(input.dtype),
        torch.stack(final_h).to(h0.dtype),
        torch.stack(final_c).to(c0.dtype),
        torch.stack(gates).to(input.dtype) if gates else input.new_empty(0),
        torch.stack(cells) if cells else input.new_empty(0, dtype=dtype),
    )


@accepts_one_step
def lstm_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    has_biases: bool,
    has_projection: bool,
    bidirectional: bool,
    needs_input_grad: bool,
    needs_weight_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of :func:`lstm_forward` by the written-out equations LB1-LB8."""
    dtype = state_dtype(input.dtype)
    x, h_out = input.to(dtype), output.to(dtype).chunk(2 if bidirectional else 1, dim=-1)
    d_input, d_h0, d_c0, d_weights = [], [], [], []
    for d, w in enumerate(_directions(weights, dtype, has_biases, has_projection, bidirectional)):
        h_steps, c_steps = _steps(h_out[d], batch_sizes), _steps(cells[d], batch_sizes)
        h_before = _states_before(h_steps, h0[d].to(dtype), reverse=d == 1)
        c_before = _states_before(c_steps, c0[d].to(dtype), reverse=d == 1)
        d_out = _output_gradient_steps(grad_output, d, h_steps, batch_sizes, bidirectional)
        gate_steps = _steps(gates[d].to(dtype), batch_sizes)

        def step(carry: Rows, item: Rows, w: DirectionWeights = w) -> tuple[Rows, Rows]:
            d_y, gate, c, c_prev = item
            d_r = carry[0] + d_y
            d_h, d_c, d_a, h = lstm_step_backward(d_r, carry[1], gate, c, c_prev, w)
            return (d_h, d_c), (d_a, d_r, h)

        carry = (_or_zeros(grad_h_n, h0)[d].to(dtype), _or_zeros(grad_c_n, c0)[d].to(dtype))
        items = list(zip(d_out, gate_steps, c_steps, c_before, strict=True))
        (d_h, d_c), emitted = _scan(step, carry, items, reverse=d == 0)
        d_h0.append(d_h)
        d_c0.append(d_c)
        d_a, d_r, h = (torch.cat(rows) for rows in zip(*emitted, strict=True))  # (R, ...): all steps' rows
        if needs_input_grad:
            d_input.append((d_a @ w.w_ih).view(x.shape))  # LB1
        if needs_weight_grads:
            d_weights += _weight_gradients(d_a, d_a, x, h_before, has_biases)
            if w.w_hr is not None:
                d_weights.append(d_r.t() @ h)  # LB8
    return (
        sum(d_input[1:], d_input[0]).to(input.dtype) if needs_input_grad else input.new_empty(0),
        torch.stack(d_h0).to(h0.dtype),
        torch.stack(d_c0).to(c0.dtype),
        [g.to(input.dtype) for g in d_weights],
    )


@accepts_one_step
def gru_forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    bidirectional: bool,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One GRU layer; the operator's contract is in :mod:`rnnkernels.ops`. Differentiable to any order."""
    dtype = state_dtype(input.dtype)
    xs = _steps(input.to(dtype), batch_sizes)
    outputs, final_h, gates = [], [], []
    for d, w in enumerate(_directions(weights, dtype, has_biases, False, bidirectional)):

        def step(carry: Rows, item: Rows, w: DirectionWeights = w) -> tuple[Rows, Rows]:
            h, saved = gru_step(item[0], carry[0], w)
            return (h,), (h, saved)

        (h_n,), emitted = _scan(step, (h0[d].to(dtype),), [(x,) for x in xs], reverse=d == 1)
        h, saved = zip(*emitted, strict=True)
        outputs.append(_join(h, batch_sizes))
        final_h.append(h_n)
        if save_for_backward:
            gates.append(_join(saved, batch_sizes))
    return (
        torch.cat(outputs, dim=-1).to(input.dtype),
        torch.stack(final_h).to(h0.dtype),
        torch.stack(gates).to(input.dtype) if gates else input.new_empty(0),
    )


@accepts_one_step
def gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weights: Sequence[Tensor],
    output: Tensor,
    gates: Tensor,
    has_biases: bool,
    bidirectional: bool,
    needs_input_grad: bool,
    needs_weight_grads: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of :func:`gru_forward` by the written-out equations GB1-GB5."""
    dtype = state_dtype(input.dtype)
    x, h_out = input.to(dtype), output.to(dtype).chunk(2 if bidirectional else 1, dim=-1)
    d_input, d_h0, d_weights = [], [], []
    for d, w in enumerate(_directions(weights, dtype, has_biases, False, bidirectional)):
        h_steps = _steps(h_out[d], batch_sizes)
        h_before = _states_before(h_steps, h0[d].to(dtype), reverse=d == 1)
        d_out = _output_gradient_steps(grad_output, d, h_steps, batch_sizes, bidirectional)
        gate_steps = _steps(gates[d].to(dtype), batch_sizes)

        def step(carry: Rows, item: Rows, w: DirectionWeights = w) -> tuple[Rows, Rows]:
            d_y, gate, h_prev = item
            d_h, d_a, d_u = gru_step_backward(carry[0] + d_y, gate, h_prev, w)
            return (d_h,), (d_a, d_u)

        items = list(zip(d_out, gate_steps, h_before, strict=True))
        (d_h,), emitted = _scan(step, (_or_zeros(grad_h_n, h0)[d].to(dtype),), items, reverse=d == 0)
        d_h0.append(d_h)
        d_a, d_u = (torch.cat(rows) for rows in zip(*emitted, strict=True))  # (R, 3H)
        if needs_input_grad:
            d_input.append((d_a @ w.w_ih).view(x.shape))  # GB3
        if needs_weight_grads:
            d_weights += _weight_gradients(d_a, d_u, x, h_before, has_biases)
    return (
        sum(d_input[1:], d_input[0]).to(input.dtype) if needs_input_grad else input.new_empty(0),
        torch.stack(d_h0).to(h0.dtype),
        [g.to(input.dtype) for g in d_weights],
    )


# --- the time loop, shared by both cells and both passes -----------------------------------------------------------------


def _scan(
    step: Callable[[Rows, Rows], tuple[Rows, Rows]], carry: Rows, items: list[Rows], reverse: bool
) -> tuple[Rows, list[Rows]]:
    """Run ``step(carry, item) -> (carry, emitted)`` over time. A step of n rows touches the first n rows of the carry."""
    emitted: list[Rows] = [()] * len(items)
    for t in reversed(range(len(items))) if reverse else range(len(items)):
        n = items[t][0].size(0)
        new, emitted[t] = step(tuple(state[:n] for state in carry), items[t])
        carry = tuple(_replace_rows(state, rows) for state, rows in zip(carry, new, strict=True))
    return carry, emitted


def _states_before(steps: Sequence[Tensor], initial: Tensor, reverse: bool) -> list[Tensor]:
    """The state each step started from, replayed from the states the steps ended with."""

    def step(carry: Rows, item: Rows) -> tuple[Rows, Rows]:
        return item, carry

    return [before for (before,) in _scan(step, (initial,), [(s,) for s in steps], reverse)[1]]


def _replace_rows(state: Tensor, rows: Tensor) -> Tensor:
    """``state`` with its first rows replaced; the others belong to sequences that are not active at this step."""
    n = rows.size(0)
    return rows if n == state.size(0) else torch.cat((rows, state[n:]))


def _steps(data: Tensor, batch_sizes: Tensor | None) -> Sequence[Tensor]:
    """Cut (T, N, ...) or packed (R, ...) data into the rows of each step."""
    if batch_sizes is None:
        return data.unbind(0)
    sizes = batch_sizes.tolist()
    if sizes != sorted(sizes, reverse=True):
        raise RuntimeError(f"batch_sizes must not increase, got {sizes}")  # rows would be broadcast without a word
    return data.split(sizes)


def _join(steps: Sequence[Tensor], batch_sizes: Tensor | None) -> Tensor:
    """The inverse of :func:`_steps`."""
    return torch.stack(list(steps)) if batch_sizes is None else torch.cat(list(steps))


def _directions(
    weights: Sequence[Tensor], dtype: torch.dtype, has_biases: bool, has_projection: bool, bidirectional: bool
) -> list[DirectionWeights]:
    return split_directions([w.to(dtype) for w in weights], has_biases, has_projection, bidirectional)


def _output_gradient_steps(
    grad_output: Tensor | None, direction: int, like: Sequence[Tensor], batch_sizes: Tensor | None, bidirectional: bool
) -> Sequence[Tensor]:
    if grad_output is None:
        return [torch.zeros_like(step) for step in like]
    own = grad_output.chunk(2 if bidirectional else 1, dim=-1)[direction]
    return _steps(own.to(like[0].dtype), batch_sizes)


def _weight_gradients(d_a: Tensor, d_u: Tensor, x: Tensor, h_before: list[Tensor], has_biases: bool) -> list[Tensor]:
    """LB1 and GB3: sums over all rows of all steps. d_a (R, G*H) faces the input, d_u (R, G*H) the hidden state."""
    rows = x.flatten(0, 1) if x.dim() == 3 else x
    grads = [d_a.t() @ rows, d_u.t() @ torch.cat(h_before)]
    return grads + ([d_a.sum(0), d_u.sum(0)] if has_biases else [])


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.t()
    return product if bias is None else product + bias
