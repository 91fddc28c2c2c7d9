r"""``LSTMCell`` and ``GRUCell``: one step of an LSTM or a GRU, in place of torch.nn's cells.

They derive from :class:`torch.nn.RNNCellBase`, so ``isinstance(cell, torch.nn.LSTMCell)`` is False; parameters, their initial
draw, ``state_dict``, inputs and errors are torch.nn's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import direct, functional
from .backends import Request
from .modules import current_weights


class _Cell(nn.RNNCellBase):
    """What both cells share."""

    _kind: str  # "lstm" or "gru"

    def request(self, input: Tensor | None = None) -> Request:
        """What a call with ``input`` would ask of a backend, for :func:`rnnkernels.explain`."""
        weights = self._weights()
        data = weights[0] if input is None else input
        present = [weight for weight in weights if weight is not None]
        return functional.request(f"{self._kind}_cell", data, present, input_size=self.input_size, hidden_size=self.hidden_size)

    def _weights(self) -> list[Tensor | None]:
        return current_weights(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))

    def _check_dim(self, name: str, tensor: Tensor) -> None:
        if tensor.dim() not in (1, 2):
            raise ValueError(f"{self._kind.upper()}Cell: Expected {name} to be 1D or 2D, got {tensor.dim()}D instead")


class LSTMCell(_Cell):
    r"""One LSTM step, in place of :class:`torch.nn.LSTMCell`.

    Equations L1-L7 of :mod:`rnnkernels.backends.reference`, as :class:`rnnkernels.LSTM` applies them at every step.

    Args:
        input_size: features of the input (I).
        hidden_size: features of h and c (H); may be 0.
        bias: whether there are ``bias_ih`` and ``bias_hh``; they are None otherwise.
        device, dtype: of the parameters; float32, float64, float16 or bfloat16.

    Call: ``h, c = cell(input, (h, c))`` with input (N, I) and states (N, H), or unbatched (I) and (H). States default to zeros.

    Parameters: ``weight_ih`` (4H, I), ``weight_hh`` (4H, H), ``bias_ih``, ``bias_hh`` (4H); rows are stacked i, f, g, o.

    Raises:
        ValueError: an input or state of more than two dimensions.
        RuntimeError: sizes, dtypes or devices that do not fit.
    """

    _kind = "lstm"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """One step; shapes are in the class's description."""
        if not torch.compiler.is_compiling():
            result = direct.cell(True, self, input, hx)
            if result is not NotImplemented:
                return result
        self._check_dim("input", input)
        if hx is None:
            zeros = input.new_zeros((*input.shape[:-1], self.hidden_size))
            hx = (zeros, zeros)
        else:
            for i, state in enumerate(hx):
                self._check_dim(f"hx[{i}]", state)
        if input.dim() == 2:
            return functional.lstm_cell(input, hx, *self._weights())
        hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = functional.lstm_cell(input.unsqueeze(0), hx, *self._weights())
        return h.squeeze(0), c.squeeze(0)


class GRUCell(_Cell):
    r"""One GRU step, in place of :class:`torch.nn.GRUCell`.

    Equations G1-G5 of :mod:`rnnkernels.backends.reference`, as :class:`rnnkernels.GRU` applies them at every step.

    Args:
        input_size: features of the input (I).
        hidden_size: features of h (H); may be 0.
        bias: whether there are ``bias_ih`` and ``bias_hh``; they are None otherwise.
        device, dtype: of the parameters; float32, float64, float16 or bfloat16.

    Call: ``h = cell(input, h)`` with input (N, I) and state (N, H), or unbatched (I) and (H). The state defaults to zeros.

    Parameters: ``weight_ih`` (3H, I), ``weight_hh`` (3H, H), ``bias_ih``, ``bias_hh`` (3H); rows are stacked r, z, n.

    Raises:
        ValueError: an input or state of more than two dimensions.
        RuntimeError: sizes, dtypes or devices that do not fit.
    """

    _kind = "gru"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step; shapes are in the class's description."""
        if not torch.compiler.is_compiling():
            result = direct.cell(False, self, input, hx)
            if result is not NotImplemented:
                return result
        self._check_dim("input", input)
        if hx is None:
            hx = input.new_zeros((*input.shape[:-1], self.hidden_size))
        else:
            self._check_dim("hidden", hx)
        if input.dim() == 2:
            return functional.gru_cell(input, hx, *self._weights())
        return functional.gru_cell(input.unsqueeze(0), hx.unsqueeze(0), *self._weights()).squeeze(0)
