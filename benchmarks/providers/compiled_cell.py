"""A cell's equations under ``torch.compile``, stepped in a Python loop: what a user writes who wants a cell of his own.

One dense layer in one direction. Compiling takes many seconds a case, so it is measured by name only.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cases import Case
from .base import Provider
from .modules import prepare


def provider(name: str, device: str = "cpu") -> Provider:
    compilers = [compiler for compiler in ("c++", "g++", "clang++") if shutil.which(compiler)]
    absent = None if compilers or device != "cpu" else "torch.compile finds no C++ compiler"
    return Provider(name, functools.partial(prepare, {"lstm": _LSTM, "gru": _GRU}), _unsupported, absent=absent)


def _unsupported(case: Case) -> str | None:
    if case.packed or case.bidirectional or case.proj_size or case.num_layers > 1:
        return "the loop is written for one dense layer in one direction"
    return "a step in a loop is a step" if case.mode == "streaming" else None


def _lstm_cell(a: Tensor, h: Tensor, c: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (a + h @ w_hh.t()).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(a: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
    x_r, x_z, x_n = a.chunk(3, dim=-1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, dim=-1)
    z = (x_z + h_z).sigmoid()
    return (1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * h


@functools.cache
def compiled(cell: Callable[..., Any]) -> Callable[..., Any]:
    """Once, and only if it is needed: importing the compiler alone takes seconds."""
    return torch.compile(cell, dynamic=False)


class _LSTM(nn.LSTM):
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[override]
        h = c = x.new_zeros(x.size(1), self.hidden_size)
        step, outputs = compiled(_lstm_cell), []
        for a in F.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0):
            h, c = step(a, h, c, self.weight_hh_l0)
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


class _GRU(nn.GRU):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h = x.new_zeros(x.size(1), self.hidden_size)
        step, outputs = compiled(_gru_cell), []
        for a in F.linear(x, self.weight_ih_l0, self.bias_ih_l0):
            h = step(a, h, self.weight_hh_l0, self.bias_hh_l0)
            outputs.append(h)
        return torch.stack(outputs), h[None]
