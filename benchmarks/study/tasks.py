"""What is learned: three synthetic tasks whose difficulty is a lag, and English text.

A :class:`Task` draws batches without end; nothing is seen twice, so accuracy on fresh sequences is that of the function learned.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: input (T, N, I) and target, of which the last steps' outputs are judged
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A source of batches and how outputs are judged: those of the last ``answers`` steps, (answers, N, outputs)."""

    inputs: int
    outputs: int
    answers: int
    draw: Callable[[int, torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    accuracy: Callable[[Tensor, Tensor], Tensor]
    chance: float  # the accuracy of a model that ignores its input


def adding(lag: int) -> Task:
    """Hochreiter & Schmidhuber 1997, as Le et al. 2015 pose it: a number and a mark at each of ``lag`` steps, two marks in
    all, one in each half; the answer is the sum of the two marked numbers. Right is within 0.04, their criterion."""

    def draw(n: int, generator: torch.Generator) -> Batch:
        numbers, marks = torch.rand(lag, n, generator=generator), torch.zeros(lag, n)
        half, rows = lag // 2, torch.arange(n)
        first = torch.randint(0, half, (n,), generator=generator)
        second = torch.randint(half, lag, (n,), generator=generator)
        marks[first, rows] = marks[second, rows] = 1.0
        return torch.stack((numbers, marks), dim=-1), (numbers * marks).sum(0)[None, :, None]

    def accuracy(outputs: Tensor, target: Tensor) -> Tensor:
        return ((outputs - target).abs() < 0.04).float().mean()

    # The best constant answer is the mean, 1; the sum of two uniform numbers has density 1 there.
    return Task(2, 1, 1, draw, F.mse_loss, accuracy, chance=0.08)


def copy_memory(lag: int, symbols: int = 5, alphabet: int = 8) -> Task:
    """Arjovsky et al. 2016: ``symbols`` to remember, ``lag`` blanks, then a cue at which they are to be repeated in order."""

    def draw(n: int, generator: torch.Generator) -> Batch:
        message = torch.randint(0, alphabet, (symbols, n), generator=generator)
        blank, cue = alphabet, alphabet + 1
        wait = torch.full((lag, n), blank)
        answer_time = torch.full((symbols, n), blank)
        answer_time[0] = cue
        return F.one_hot(torch.cat((message, wait, answer_time)), alphabet + 2).float(), message

    return Task(alphabet + 2, alphabet, symbols, draw, _cross_entropy, _share_right, chance=1 / alphabet)


def delayed_parity(lag: int, bits: int = 2) -> Task:
    """``bits`` random bits, then ``lag`` random ones that do not count; the answer is whether the first ones had an odd sum.

    A second input marks the bits that count, so that what is asked does not have to be learned.
    """

    def draw(n: int, generator: torch.Generator) -> Batch:
        shown = torch.randint(0, 2, (bits + lag, n), generator=generator)
        marks = torch.zeros(bits + lag, n)
        marks[:bits] = 1.0
        return torch.stack((shown * 2.0 - 1.0, marks), dim=-1), shown[:bits].sum(0, keepdim=True) % 2

    return Task(2, 2, 1, draw, _cross_entropy, _share_right, chance=0.5)


LAGGED: dict[str, Callable[[int], Task]] = {"adding": adding, "copy memory": copy_memory, "delayed parity": delayed_parity}


def _cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), target.flatten())


def _share_right(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs.argmax(-1) == target).float().mean()


# --- text ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Python's own language reference as indices into its characters; the last tenth is held out."""

    train: Tensor
    held_out: Tensor
    characters: int


def text() -> Text:
    topics = pydoc_data.topics.topics
    joined = "\n".join(topics[name] for name in sorted(topics))
    index = {character: i for i, character in enumerate(sorted(set(joined)))}
    data = torch.tensor([index[character] for character in joined])
    cut = len(data) * 9 // 10
    return Text(data[:cut], data[cut:], len(index))


def columns(data: Tensor, batch: int) -> Tensor:
    """(length, batch): each column its own stretch of the text."""
    length = len(data) // batch
    return data[: length * batch].view(batch, length).t().contiguous()
