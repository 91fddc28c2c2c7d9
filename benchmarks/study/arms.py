"""Who is compared: an LSTM, a GRU of the same hidden size, and a GRU of the same number of parameters.

Every comparison of the study is between the first and one of the other two. The formulas for parameters and operations are here,
too; :mod:`.footprint` checks them against what torch counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import rnnkernels

from .. import flops
from ..cases import TORCH_CLASSES, Case
from ..flops import GATES
from ..providers import BASELINE, OURS

#: Library -> cell -> class.
CLASSES: dict[str, dict[str, type[nn.Module]]] = {
    BASELINE: dict(TORCH_CLASSES),
    OURS: {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU},
}
EQUAL_HIDDEN, EQUAL_PARAMETERS = "equal hidden size", "equal parameters"
LSTM, GRU, WIDE_GRU = "LSTM", "GRU", "GRU, as many parameters"
#: The GRU that stands against the LSTM in each of the two comparisons.
OPPONENTS = {EQUAL_HIDDEN: GRU, EQUAL_PARAMETERS: WIDE_GRU}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    cell: str  # "lstm" or "gru"
    hidden_size: int


def arms(hidden_size: int, parameters: Callable[[str, int], int]) -> list[Arm]:
    """The three arms; ``parameters(cell, hidden_size)`` counts those of the whole model that is compared."""
    wide = equal_hidden_size(lambda size: parameters("gru", size), parameters("lstm", hidden_size))
    return [Arm(LSTM, "lstm", hidden_size), Arm(GRU, "gru", hidden_size), Arm(WIDE_GRU, "gru", wide)]


def equal_hidden_size(parameters: Callable[[int], int], target: int) -> int:
    """The hidden size whose (increasing) number of parameters is nearest to ``target``."""
    size = 1
    while parameters(size) < target:
        size += 1
    return size if size == 1 or parameters(size) - target < target - parameters(size - 1) else size - 1


def layer_parameters(cell: str, input_size: int, hidden_size: int) -> int:
    """W_ih, W_hh and two biases per gate, as torch.nn has them: G H (I + H + 2)."""
    return GATES[cell] * hidden_size * (input_size + hidden_size + 2)


def forward_flops(cell: str, input_size: int, hidden_size: int, steps: int, batch: int) -> int:
    """The products of a layer, a multiply-add being two: 2 G H (I + H) per step and sequence."""
    return flops.operations(Case(cell, "inference", steps, batch, input_size, hidden_size), steps * batch)


def backward_flops(cell: str, input_size: int, hidden_size: int, steps: int, batch: int) -> int:
    """A gradient of the inputs and one of the weights for each product, but none of the states before the first step."""
    backward = flops.operations(Case(cell, "backward", steps, batch, input_size, hidden_size), steps * batch)
    return backward - 2 * GATES[cell] * hidden_size**2 * batch
