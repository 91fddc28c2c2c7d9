"""Makes the recurrent modules of a trained torch.nn model this package's, in one line, and shows that nothing else changes.

The model says which section of Python's language reference a line is from; it was written and trained with torch.nn alone.

    python examples/swap_modules.py
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.benchmark import Timer

import rnnkernels

SECTIONS = ("if", "for", "try", "with", "class", "strings", "numbers", "import")


class Classifier(nn.Module):
    """Somebody's model: characters of a packed batch of lines -> (N, sections) logits."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.reader = nn.LSTM(32, hidden_size, num_layers=2, bidirectional=True)
        self.summary = nn.GRU(2 * hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, len(SECTIONS))

    def forward(self, lines: PackedSequence) -> Tensor:
        read, _ = self.reader(lines._replace(data=self.embedding(lines.data)))
        _, h_n = self.summary(read)
        return self.head(h_n[-1])


def load() -> tuple[list[Tensor], Tensor]:
    """Every line of the sections, as ASCII codes, and which section it is from."""
    lines, sections = [], []
    for section, name in enumerate(SECTIONS):
        for line in pydoc_data.topics.topics[name].splitlines():
            if len(line.split()) >= 5:
                lines.append(torch.tensor(list(line.strip().encode("ascii", "replace"))))
                sections.append(section)
    return lines, torch.tensor(sections)


def train(model: Classifier, lines: Sequence[Tensor], sections: Tensor, steps: int, batch_size: int = 32) -> list[float]:
    """-> the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(0, len(lines), (batch_size,))
        loss = F.cross_entropy(model(pack([lines[i] for i in chosen])), sections[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pack(lines: Sequence[Tensor]) -> PackedSequence:
    return pack_sequence(list(lines), enforce_sorted=False)


def milliseconds(model: Classifier, lines: PackedSequence) -> float:
    with torch.no_grad():
        return 1e3 * Timer("model(lines)", globals={"model": model, "lines": lines}).blocked_autorange(min_run_time=0.2).median


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hidden-size", type=int, default=48)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    lines, sections = load()
    model = Classifier(options.hidden_size)
    losses = train(model, lines, sections, options.steps)
    print(f"torch.nn, trained on {len(lines)} lines: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    batch = pack(lines[::8])
    with torch.no_grad():
        before = model(batch)
    before_ms = milliseconds(model, batch)

    report = rnnkernels.replace_rnn_modules(model)  # this is the line

    print(report)
    with torch.no_grad():
        after = model(batch)
    print(f"largest difference in a logit: {(after - before).abs().max():.1e} of {before.abs().max():.1f}")
    print(f"{len(lines[::8])} lines: {before_ms:.1f} ms with torch.nn, {milliseconds(model, batch):.1f} ms now")
    print(f"training goes on from the same parameters: loss {train(model, lines, sections, 1)[0]:.2f}")
    report.undo()
    print(f"and back: {type(model.reader).__module__}.{type(model.reader).__name__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
