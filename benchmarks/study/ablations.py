"""Gates taken away, one at a time, without new kernels.

A gate whose rows of W_ih, W_hh and b_hh are zero and whose b_ih is ±1e4 is exactly 1 or 0, and so is its derivative: s'(±1e4) = 0
in float32. It stays as it is under any optimizer. Coupling uses 1 - s(a) = s(-a): input rows that are the forget gate's, negated.
The equations' numbers are those of rnnkernels/backends/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .learning import ours

_SATURATED = 1e4
_ROWS = {"lstm": "ifgo", "gru": "rzn"}


@dataclass(frozen=True)
class Variant:
    """A cell and what is changed in its layer."""

    name: str
    cell: str
    change: Callable[[nn.Module], None] = lambda rnn: None

    def make(self, cell: str, input_size: int, hidden_size: int) -> nn.Module:
        """A :data:`.learning.MakeRNN`."""
        rnn = ours(cell, input_size, hidden_size)
        self.change(rnn)
        return rnn


def rows(rnn: nn.Module, name: str, gate: str) -> Tensor:
    """A gate's rows of a parameter: a view."""
    size, at = rnn.hidden_size, _ROWS[rnn.mode.lower()].index(gate)
    return getattr(rnn, name)[at * size : (at + 1) * size]


def fix(gate: str, value: float) -> Callable[[nn.Module], None]:
    """The gate is 1 (``value`` 1.0) or 0, whatever comes in."""

    @torch.no_grad()
    def change(rnn: nn.Module) -> None:
        for name, _ in rnn.named_parameters():
            rows(rnn, name, gate).zero_()
        rows(rnn, "bias_ih_l0", gate).fill_(_SATURATED if value else -_SATURATED)

    return change


def bias(gate: str, value: float) -> Callable[[nn.Module], None]:
    """The gate starts with this much added to its bias."""

    @torch.no_grad()
    def change(rnn: nn.Module) -> None:
        rows(rnn, "bias_ih_l0", gate).add_(value)

    return change


class _Coupled(nn.Module):
    def forward(self, parameter: Tensor) -> Tensor:
        _, f, g, o = parameter.chunk(4)
        return torch.cat((-f, f, g, o))


def couple(rnn: nn.Module) -> None:
    """i = 1 - f: what an LSTM lets in is what it forgets, as in a GRU (L2, L3 and G5)."""
    for name in [name for name, _ in rnn.named_parameters()]:
        parametrize.register_parametrization(rnn, name, _Coupled())


VARIANTS = (
    Variant("LSTM", "lstm"),
    Variant("LSTM, forget bias + 1", "lstm", bias("f", 1.0)),
    Variant("LSTM, input gate = 1", "lstm", fix("i", 1.0)),
    Variant("LSTM, forget gate = 1", "lstm", fix("f", 1.0)),
    Variant("LSTM, output gate = 1", "lstm", fix("o", 1.0)),
    Variant("LSTM, input gate = 1 - forget gate", "lstm", couple),
    Variant("GRU", "gru"),
    Variant("GRU, update bias + 1", "gru", bias("z", 1.0)),
    Variant("GRU, reset gate = 1", "gru", fix("r", 1.0)),
    Variant("GRU, update gate = 0", "gru", fix("z", 0.0)),
)
