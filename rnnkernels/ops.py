"""The operators: schemas, fakes, autograd, vmap and autocast rules. The table of contents of the native side.

There is one operator per layer (both directions), forward and backward, for each cell: ``lstm_forward``, ``lstm_backward``,
``gru_forward``, ``gru_backward``. Each exists once per *family* of backends, told apart by a prefix of the name:

==============  ==========================================================================================
``""``          native C++ and CUDA kernels; the dispatcher picks by device (:mod:`rnnkernels.backends.native`)
``triton_``     Triton kernels of :mod:`rnnkernels.backends.triton`, on GPUs, or interpreted on the CPU
``reference_``  the written-out equations of :mod:`rnnkernels.backends.reference`, any device and dtype
==============  ==========================================================================================

Contract. D = 2 if bidirectional else 1; I input size; H hidden size; P = proj_size when projected, else H; G = 4 (LSTM) or
3 (GRU). ``...`` stands for (T, N) when the batch is dense and (R,) when it is packed: then ``batch_sizes``, a CPU int64 tensor
(T,), never increasing, sums to R, step t's rows are consecutive, and batch row b is active at step t if b < batch_sizes[t].
The *state dtype* is float32 for float16 and bfloat16 and the input's own dtype otherwise.

=============================================  ==================================================  ===========
tensor                                         shape                                               dtype
=============================================  ==================================================  ===========
input, grad_input                              (..., I), any strides                               input's
h0, h_n and their gradients                    (D, N, P)                                           input's
c0, c_n and their gradients                    (D, N, H)                                           input's
weights, per direction                         w_ih (G*H, I), w_hh (G*H, P),                       input's
                                               [b_ih (G*H), b_hh (G*H)], [w_hr (P, H)]
output, grad_output                            (..., D*P)                                          input's
gates                                          (D, ..., 4, H): LSTM i, f, g, o; GRU r, z, n, q     input's
cells                                          (D, ..., H): c after each step                      state dtype
=============================================  ==================================================  ===========

One step of one direction may come without the axes T and D: with input (N, I) and no ``batch_sizes``, states are (N, ·), output
(N, P), gates (N, 4, H) and cells (N, H). That is how the cells call.

Results are new contiguous tensors: operators mutate and alias nothing. ``gates`` and ``cells`` are what backward needs; they
have shape (0,) unless ``save_for_backward``. ``grad_input`` has shape (0,) unless ``needs_input_grad``, ``grad_weights`` is an
empty list unless ``needs_weight_grads``. A gradient that is None counts as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import autocast, batching, derivatives
from .backends import native, reference, triton
from .layout import SAVED_GATES, operator, state_dtype

FAMILIES = ("", "triton_", "reference_")

_SCHEMAS = {
    "lstm_forward": (
        "(Tensor input, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor[] weights, bool has_biases, "
        "bool has_projection, bool bidirectional, bool save_for_backward) "
        "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)"
    ),
    "lstm_backward": (
        "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, Tensor? batch_sizes, Tensor h0, "
        "Tensor c0, Tensor[] weights, Tensor output, Tensor gates, Tensor cells, bool has_biases, bool has_projection, "
        "bool bidirectional, bool needs_input_grad, bool needs_weight_grads) "
        "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)"
    ),
    "gru_forward": (
        "(Tensor input, Tensor? batch_sizes, Tensor h0, Tensor[] weights, bool has_biases, bool bidirectional, "
        "bool save_for_backward) -> (Tensor output, Tensor h_n, Tensor gates)"
    ),
    "gru_backward": (
        "(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor? batch_sizes, Tensor h0, Tensor[] weights, "
        "Tensor output, Tensor gates, bool has_biases, bool bidirectional, bool needs_input_grad, "
        "bool needs_weight_grads) -> (Tensor grad_input, Tensor grad_h0, Tensor[] grad_weights)"
    ),
}

_library = torch.library.Library("rnnkernels", "DEF")


# --- fakes: shapes and dtypes of the results -----------------------------------------------------------------------------


def _lstm_forward_fake(
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
    output, gates = _forward_results(input, batch_sizes, h0, c0.size(-1), save_for_backward)
    cells_shape = (*gates.shape[:-2], c0.size(-1)) if save_for_backward else (0,)
    return output, _new(h0), _new(c0), gates, input.new_empty(cells_shape, dtype=state_dtype(input.dtype))


def _gru_forward_fake(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    bidirectional: bool,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    output, gates = _forward_results(input, batch_sizes, h0, h0.size(-1), save_for_backward)
    return output, _new(h0), gates


def _lstm_backward_fake(
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
    grad_input, grad_weights = _backward_results(input, weights, needs_input_grad, needs_weight_grads)
    return grad_input, _new(h0), _new(c0), grad_weights


def _gru_backward_fake(
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
    grad_input, grad_weights = _backward_results(input, weights, needs_input_grad, needs_weight_grads)
    return grad_input, _new(h0), grad_weights


def _forward_results(
    input: Tensor, batch_sizes: Tensor | None, h0: Tensor, hidden_size: int, save_for_backward: bool
) -> tuple[Tensor, Tensor]:
    rows = input.shape[:-1]
    one_step = input.dim() == 2 and batch_sizes is None
    directions = () if one_step else (h0.size(0),)
    gates_shape = (*directions, *rows, SAVED_GATES, hidden_size) if save_for_backward else (0,)
    width = h0.size(-1) if one_step else h0.size(0) * h0.size(-1)
    return input.new_empty((*rows, width)), input.new_empty(gates_shape)


def _backward_results(
    input: Tensor, weights: Sequence[Tensor], needs_input_grad: bool, needs_weight_grads: bool
) -> tuple[Tensor, list[Tensor]]:
    return _new(input) if needs_input_grad else input.new_empty(0), [_new(w) for w in weights if needs_weight_grads]


def _new(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


_FAKES: dict[str, Callable] = {
    "lstm_forward": _lstm_forward_fake,
    "lstm_backward": _lstm_backward_fake,
    "gru_forward": _gru_forward_fake,
    "gru_backward": _gru_backward_fake,
}


# --- registration --------------------------------------------------------------------------------------------------------


def _register() -> None:
    for family in FAMILIES:
        for name, schema in _SCHEMAS.items():
            _library.define(family + name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            qualified = f"rnnkernels::{family}{name}"
            torch.library.register_fake(qualified, _FAKES[name], lib=_library)
            if family:
                python = getattr(reference, name) if family == "reference_" else triton.implementation(name)
                _library.impl(family + name, autocast.disabled_within(python), "CompositeExplicitAutograd")
            else:
                # The CUDA library's own: as these, and how the products and the schedule are to be.
                _library.define(f"cuda_{name}" + schema.replace(") ->", f", {native.MANNER}) ->"))
                _library.impl(name, native.implementation(name), "CUDA")
            op = operator(family, name)
            for device_type in autocast.DEVICE_TYPES:
                _library.impl(family + name, autocast.rule(op, name, device_type), autocast.dispatch_key(device_type))
            torch.library.register_vmap(qualified, batching.rule(op), lib=_library)
        for cell in ("lstm", "gru"):
            forward, backward = operator(family, f"{cell}_forward"), operator(family, f"{cell}_backward")
            derivatives.register_forward(forward, backward, cell, _library)
            derivatives.register_backward(backward, cell, _library)


_register()
