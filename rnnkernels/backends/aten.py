"""torch's own LSTM and GRU, the whole stack in one call: the safety net, and the yardstick."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(
    cell: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """input (T, N, I) or packed (R, I), states (L*D, N, ·) -> output and the final states.

    Outside of training, too, cuDNN is told to train where a gradient may be asked for: otherwise it keeps nothing for backward
    and raises there. Without dropout the results are the same.
    """
    if not train:
        dropout, train = 0.0, torch.is_grad_enabled()
    function = getattr(torch._VF, cell)
    hx = states if cell == "lstm" else states[0]
    options = (list(weights), has_biases, num_layers, dropout, train, bidirectional)
    if batch_sizes is None:
        return function(input, hx, *options, False)  # batch_first
    return function(input, batch_sizes, hx, *options)


def cell_forward(cell: str, input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """One step. input (N, I), states (N, H); weights w_ih, w_hh, b_ih, b_hh -> the new states."""
    if cell == "lstm":
        return torch._VF.lstm_cell(input, states, *weights)
    return (torch._VF.gru_cell(input, states[0], *weights),)
