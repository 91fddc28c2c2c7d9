"""Training one arm on one task: the same loop, optimizer and learning rate for every cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import providers
from .arms import CLASSES
from .tasks import Task, Text, columns

#: Makes the recurrent module: (cell, input size, hidden size) -> nn.LSTM, nn.GRU or another with their interface.
MakeRNN = Callable[[str, int, int], nn.Module]
#: A run on a lagged task ends when this share of fresh sequences is right.
SOLVED = 0.99


def ours(cell: str, input_size: int, hidden_size: int, **options: Any) -> nn.Module:
    return CLASSES[providers.OURS][cell](input_size, hidden_size, **options)


class Sequence(nn.Module):
    """(T, N, I) -> (answers, N, outputs)."""

    def __init__(self, rnn: nn.Module, task: Task) -> None:
        super().__init__()
        self.rnn, self.answers = rnn, task.answers
        self.head = nn.Linear(rnn.hidden_size, task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-self.answers :])


class Language(nn.Module):
    """(T, N) characters -> logits (T, N, characters) of the next ones, and the state to go on from."""

    def __init__(self, rnn: nn.Module, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, rnn.input_size)
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, characters)

    def forward(self, text: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.rnn(self.embedding(text), state)
        return self.head(output), state


def learn_lagged(
    task: Task,
    cell: str,
    hidden_size: int,
    seed: int,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    every: int,
    make: MakeRNN = ours,
) -> dict[str, Any]:
    """-> accuracy on 512 fresh sequences ``every`` so many steps, up to :data:`SOLVED`, and the mean loss in between."""
    torch.manual_seed(seed)
    model = Sequence(make(cell, task.inputs, hidden_size), task)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    training, fresh = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_000)
    curve: dict[str, list[float]] = {"step": [], "loss": [], "accuracy": []}
    losses = []
    begin = time.process_time()
    for step in range(1, steps + 1):
        x, target = task.draw(batch, training)
        loss = task.loss(model(x), target)
        losses.append(_descend(model, optimizer, loss))
        if step % every == 0:
            with torch.no_grad():
                x, target = task.draw(512, fresh)
                curve["accuracy"].append(round(task.accuracy(model(x), target).item(), 4))
            curve["step"].append(step)
            curve["loss"].append(_rounded(losses))
            losses.clear()
            if curve["accuracy"][-1] >= SOLVED:
                break
    solved = curve["accuracy"][-1] >= SOLVED
    return {"curve": curve, "solved_at": curve["step"][-1] if solved else None, "cpu_seconds": _since(begin)}


def learn_language(
    text: Text,
    cell: str,
    hidden_size: int,
    seed: int,
    *,
    steps: int,
    batch: int,
    length: int,
    embedding: int,
    learning_rate: float,
    every: int,
    make: MakeRNN = ours,
    before_step: Callable[[nn.Module], None] | None = None,
) -> dict[str, Any]:
    """-> the loss on held-out text, in nats per character, ``every`` so many steps, the mean training loss in between, and every
    training loss."""
    torch.manual_seed(seed)
    model = Language(make(cell, embedding, hidden_size), text.characters)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    training = columns(text.train, batch)
    # Every seed reads the text from another place on.
    at = int(torch.randint(0, len(training) - length, ()))
    curve: dict[str, list[float]] = {"step": [], "loss": [], "held_out": []}
    losses, state = [], None
    begin = time.process_time()
    for step in range(1, steps + 1):
        if at + length >= len(training):
            at, state = 0, None
        if before_step is not None:
            before_step(model)
        logits, state = model(training[at : at + length], state)
        loss = F.cross_entropy(logits.flatten(0, 1), training[at + 1 : at + length + 1].flatten())
        losses.append(_descend(model, optimizer, loss))
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        at += length
        if step % every == 0:
            curve["step"].append(step)
            curve["loss"].append(_rounded(losses[-every:]))
            curve["held_out"].append(round(_held_out_loss(model, text), 5))
    return {"curve": curve, "losses": losses, "cpu_seconds": _since(begin)}


@torch.no_grad()
def _held_out_loss(model: Language, text: Text) -> float:
    held_out = columns(text.held_out, 64)
    logits, _ = model(held_out[:-1])
    # The first characters are predicted from next to nothing.
    return F.cross_entropy(logits[32:].flatten(0, 1), held_out[33:].flatten()).item()


def _descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _rounded(losses: list[float]) -> float:
    return round(sum(losses) / len(losses), 6)


def _since(begin: float) -> float:
    return round(time.process_time() - begin, 2)
