"""What is measured: a :class:`Case` is one shape of one layer in one mode, a :class:`Problem` its numbers."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

TORCH_CLASSES: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}

MODES = {
    "inference": "forward without gradients",
    "forward": "forward, keeping what backward needs",
    "backward": "the gradients of the input and of every weight, after a forward that is not timed",
    "training": "forward and backward",
    "streaming": "one step without gradients, states kept from call to call",
}
#: Steps that a streaming case is fed while its results are checked; its T is 1.
STREAMED_STEPS = 8


@dataclass(frozen=True)
class Case:
    """One measurement. T steps, B sequences, I input size, H hidden size."""

    cell: str  # "lstm" or "gru"
    mode: str  # of MODES
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

    def lengths(self, seed: int) -> list[int]:
        """Every sequence's steps, longest first: T, or ragged if packed."""
        if not self.packed:
            return [self.T] * self.B
        draw = random.Random(seed)
        lengths = sorted((draw.randint(max(1, self.T // 4), self.T) for _ in range(self.B)), reverse=True)
        lengths[0] = self.T
        return lengths

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Problem(NamedTuple):
    """A case's numbers, the same for every provider."""

    case: Case
    weights: dict[str, Tensor]  # a state_dict, in the case's dtype
    input: Tensor | PackedSequence  # (T, B, I), or packed (R, I)
    grad_output: Tensor  # of the output's data: (T, B, D*P) or (R, D*P)
    lengths: list[int]  # every sequence's steps

    def padded_input(self) -> Tensor:
        """(T, B, I), zeros behind the end of a sequence."""
        return pad_packed_sequence(self.input)[0] if isinstance(self.input, PackedSequence) else self.input

    def padded_grad_output(self) -> Tensor:
        """(T, B, D*P), zeros behind the end of a sequence."""
        if not isinstance(self.input, PackedSequence):
            return self.grad_output
        return pad_packed_sequence(self.input._replace(data=self.grad_output))[0]

    def packed(self, padded: Tensor) -> Tensor:
        """The real rows of (T, B, ...), in the order of the case's own output; all of it if the case is dense."""
        if not isinstance(self.input, PackedSequence):
            return padded
        return pack_padded_sequence(padded, torch.tensor(self.lengths)).data


def make_problem(case: Case, seed: int, device: torch.device | str = "cpu") -> Problem:
    """Weights as torch.nn draws them, normal inputs and output gradients, ragged lengths if packed; all from ``seed``."""
    torch.manual_seed(seed)
    dtype = case.torch_dtype
    weights = {k: v.to(device, dtype) for k, v in TORCH_CLASSES[case.cell](**case.options()).state_dict().items()}
    steps = STREAMED_STEPS if case.mode == "streaming" else case.T
    input: Tensor | PackedSequence = torch.randn(steps, case.B, case.I).to(device, dtype)
    rows: tuple[int, ...] = (steps, case.B)
    lengths = case.lengths(seed)
    if case.packed:
        input = pack_padded_sequence(input, torch.tensor(lengths))
        rows = (input.data.size(0),)
    width = (case.proj_size or case.H) * (2 if case.bidirectional else 1)
    return Problem(case, weights, input, torch.randn(*rows, width).to(device, dtype), lengths)
