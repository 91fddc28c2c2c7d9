"""What is measured: a :class:`Case` is one shape of one layer in one mode; :data:`GRIDS` are the sets to choose from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

TORCH_CLASSES: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class Case:
    """One measurement. T steps, B sequences, I input size, H hidden size."""

    cell: str  # "lstm" or "gru"
    mode: str  # "inference" (forward without gradients) or "training" (forward, then gradients of everything)
    T: int
    B: int
    I: int  # noqa: E741  (the letter the shapes are written with everywhere)
    H: int
    dtype: str = "float32"
    packed: bool = False  # ragged lengths between T/4 and T
    bidirectional: bool = False
    proj_size: int = 0
    num_layers: int = 1

    @property
    def variant(self) -> str:
        """What sets the case apart from one dense float32 layer; the classes of the summary."""
        parts = ["packed"] * self.packed + ["bidirectional"] * self.bidirectional + ["projection"] * bool(self.proj_size)
        parts += [f"{self.num_layers} layers"] * (self.num_layers > 1) + [self.dtype] * (self.dtype != "float32")
        return ", ".join(parts) or "dense"

    @property
    def group(self) -> str:
        return f"{self.cell.upper()} {self.mode}, {self.variant}"

    def __str__(self) -> str:
        projection = f" P={self.proj_size}" if self.proj_size else ""
        return f"{self.group}: T={self.T} B={self.B} I={self.I} H={self.H}{projection}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def options(self) -> dict[str, Any]:
        """The arguments of the module's constructor."""
        options = {"num_layers": self.num_layers, "bidirectional": self.bidirectional}
        if self.proj_size:
            options["proj_size"] = self.proj_size
        return {"input_size": self.I, "hidden_size": self.H, **options}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Problem(NamedTuple):
    """A case's numbers, the same for every provider."""

    case: Case
    weights: dict[str, Tensor]  # a state_dict, in the case's dtype
    input: Tensor | PackedSequence  # (T, B, I), or packed (R, I)
    grad_output: Tensor  # of the output's data: (T, B, D*P) or (R, D*P)


def make_problem(case: Case, seed: int) -> Problem:
    """Weights as torch.nn draws them, normal inputs and output gradients, ragged lengths if packed; all from ``seed``."""
    torch.manual_seed(seed)
    dtype = case.torch_dtype
    weights = {k: v.to(dtype) for k, v in TORCH_CLASSES[case.cell](**case.options()).state_dict().items()}
    input: Tensor | PackedSequence = torch.randn(case.T, case.B, case.I).to(dtype)
    rows: tuple[int, ...] = (case.T, case.B)
    if case.packed:
        draw = random.Random(seed)
        lengths = sorted((draw.randint(max(1, case.T // 4), case.T) for _ in range(case.B)), reverse=True)
        lengths[0] = case.T
        input = pack_padded_sequence(input, torch.tensor(lengths))
        rows = (input.data.size(0),)
    width = (case.proj_size or case.H) * (2 if case.bidirectional else 1)
    return Problem(case, weights, input, torch.randn(*rows, width).to(dtype))


# --- the grids -----------------------------------------------------------------------------------------------------------

_DENSE = (  # T, B, I, H: one step; one sequence; small; the usual; wide; and sizes that fit no vector or block
    (1, 1, 64, 64),
    (100, 1, 64, 64),
    (1000, 1, 64, 64),
    (100, 1, 256, 256),
    (100, 16, 128, 128),
    (100, 32, 256, 256),
    (50, 64, 512, 512),
    (20, 32, 1024, 1024),
    (37, 5, 31, 67),
    (61, 33, 100, 201),
)
_VARIED = ((100, 16, 128, 128), (61, 33, 100, 201))  # shapes on which every variant is measured


def _small() -> Iterator[Case]:
    for cell in ("lstm", "gru"):
        for mode in ("inference", "training"):
            for shape in _DENSE:
                yield Case(cell, mode, *shape)
            for shape in _VARIED:
                base = Case(cell, mode, *shape)
                yield replace(base, packed=True)
                yield replace(base, bidirectional=True)
                yield replace(base, num_layers=2)
                yield replace(base, dtype="bfloat16")
                yield replace(base, dtype="float16")
                yield replace(base, dtype="float64")
                if cell == "lstm":
                    yield replace(base, proj_size=base.H // 2)
            yield replace(Case(cell, mode, 100, 32, 256, 256), packed=True)
            yield replace(Case(cell, mode, 100, 32, 256, 256), dtype="bfloat16")


def _tiny() -> Iterator[Case]:
    for cell in ("lstm", "gru"):
        for mode in ("inference", "training"):
            yield Case(cell, mode, 5, 3, 6, 7)
        yield Case(cell, "training", 5, 3, 6, 7, packed=True)
        yield Case(cell, "inference", 5, 3, 6, 7, dtype="bfloat16")


GRIDS = {"small": _small, "tiny": _tiny}
