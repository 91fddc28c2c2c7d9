"""Shapes, dtypes and weight order that every backend agrees on.

A *layer* is one level of a stacked network, both directions included. Its weights travel as one flat list, per direction
``w_ih, w_hh, [b_ih, b_hh], [w_hr]``, which is torch.nn's registration order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LSTM_GATES = 4
GRU_GATES = 3
GATES = {"lstm": LSTM_GATES, "gru": GRU_GATES}

#: How many states a cell carries from step to step: LSTM h and c, GRU h.
N_STATES = {"lstm": 2, "gru": 1}

#: What a step saves per hidden unit: LSTM i, f, g, o; GRU r, z, n and q, the hidden half of the candidate.
SAVED_GATES = 4


class DirectionWeights(NamedTuple):
    """The weights of one direction of one layer; H hidden, I input, P = proj_size or H, G gates."""

    w_ih: Tensor  # (G*H, I)
    w_hh: Tensor  # (G*H, P)
    b_ih: Tensor | None  # (G*H,)
    b_hh: Tensor | None  # (G*H,)
    w_hr: Tensor | None  # (P, H)


def weights_per_direction(has_biases: bool, has_projection: bool) -> int:
    return 2 + 2 * has_biases + has_projection


def split_directions(
    weights: Sequence[Tensor], has_biases: bool, has_projection: bool, bidirectional: bool
) -> list[DirectionWeights]:
    """Cut one layer's flat weight list into its one or two directions."""
    per_direction = weights_per_direction(has_biases, has_projection)
    directions = 2 if bidirectional else 1
    if len(weights) != per_direction * directions:
        raise ValueError(
            f"expected {per_direction * directions} weights for one layer (has_biases={has_biases}, "
            f"has_projection={has_projection}, bidirectional={bidirectional}), got {len(weights)}"
        )
    result = []
    for start in range(0, len(weights), per_direction):
        own = weights[start : start + per_direction]
        b_ih, b_hh = (own[2], own[3]) if has_biases else (None, None)
        result.append(DirectionWeights(own[0], own[1], b_ih, b_hh, own[-1] if has_projection else None))
    return result


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums, the cell state and gradient carries are held: float32 for the half types."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def operator(family: str, name: str) -> torch._ops.OpOverload:
    """The registered operator ``name`` (such as "lstm_forward") of one family of backends; see :mod:`rnnkernels.ops`."""
    return getattr(torch.ops.rnnkernels, family + name).default
