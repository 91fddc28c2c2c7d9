"""How many floating-point operations a case takes: those of its matrix products, two per multiply-add.

With R the sequences' steps in all (T·B unless packed), G gates (LSTM 4, GRU 3), I' a layer's input size and P its state's size
(H without projection), one direction of one layer takes

    forward     2·R·(G·H·(I' + P) + H·P if projected)
    backward    twice that: the gradients of what is multiplied and of the weights each take as much

The pointwise equations are left out: they grow with H where the products grow with its square. The product with the initial
state is counted, zero or not, so a provider that knows it to be zero seems to do a T of 1 faster than it computes.
"""

from __future__ import annotations

from .cases import Case

GATES = {"lstm": 4, "gru": 3}
#: How often a case's mode does the products of a forward pass.
_PASSES = {"inference": 1, "forward": 1, "backward": 2, "training": 3, "streaming": 1}


def operations(case: Case, rows: int) -> int:
    """Of the whole case, ``rows`` being the steps of its sequences in all."""
    return 2 * rows * weights(case) * _PASSES[case.mode]


def weights(case: Case) -> int:
    """Elements of all weight matrices: the multiply-adds of one row of one step."""
    return sum(_input_weights(case, layer) + recurrent_weights(case) for layer in _layers(case))


def recurrent_weights(case: Case) -> int:
    """Elements of the matrices that one layer's every step multiplies its state with, one direction."""
    state = case.proj_size or case.H
    return GATES[case.cell] * case.H * state + (case.H * state if case.proj_size else 0)


def _input_weights(case: Case, layer: int) -> int:
    directions = 2 if case.bidirectional else 1
    return GATES[case.cell] * case.H * (case.I if layer == 0 else directions * (case.proj_size or case.H))


def _layers(case: Case) -> list[int]:
    """Each layer as often as it has directions."""
    return [layer for layer in range(case.num_layers) for _ in range(2 if case.bidirectional else 1)]
