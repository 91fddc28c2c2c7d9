"""Exports a trained character language model by torch.export, for any length and batch size, and runs it from the file.

    python examples/export_model.py
    python examples/export_model.py --load out/char_language_model.pt2

The second command needs neither the model's class nor its weights: only ``import rnnkernels``, which registers the operator that
each recurrent layer is in the program.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from char_language_model import OUT, CharModel, Run, batches, load_text
from torch import Tensor, nn

import rnnkernels


class Logits(nn.Module):
    """What is exported: (T, N) characters -> (T, N, characters), from a zero state."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> Tensor:
        return self.model(text)[0]


def export(model: nn.Module) -> torch.export.ExportedProgram:
    length, batch = torch.export.Dim("length", min=1), torch.export.Dim("batch", min=1)
    return torch.export.export(model.eval(), (torch.zeros(5, 3, dtype=torch.long),), dynamic_shapes=({0: length, 1: batch},))


def continue_text(program: nn.Module, prompt: str, length: int) -> str:
    """By the likeliest character, one at a time, reading the whole text again for each."""
    _, characters = load_text()
    text = [characters.index(character) for character in prompt]
    for _ in range(length):
        text.append(int(program(torch.tensor(text)[:, None])[-1, 0].argmax()))
    return "".join(characters[i] for i in text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--out", type=Path, default=OUT / "char_language_model.pt2", help="(default: %(default)s)")
    parser.add_argument("--load", type=Path, help="run this program instead of exporting one")
    options = parser.parse_args(arguments)
    if options.load is not None:
        print(continue_text(torch.export.load(options.load).module(), "The ", 60))
        return 0

    torch.manual_seed(0)
    text, characters = load_text()
    run = Run(CharModel(rnnkernels.LSTM, len(characters), options.hidden_size))
    for batch in itertools.islice(batches(text, 64, 16), options.steps):
        run.step(*batch)
    print(f"trained: loss {run.losses[0]:.3f} -> {run.losses[-1]:.3f}")

    model = Logits(run.model)
    program = export(model)
    operators = [str(node.target) for node in program.graph.nodes if "rnnkernels" in str(node.target)]
    print(f"of this package in the program: {', '.join(operators)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, options.out)
    loaded = torch.export.load(options.out).module()
    for shape in ((1, 1), (7, 2), (200, 5)):
        inputs = text[: shape[0] * shape[1]].view(shape)
        with torch.no_grad():
            difference = (loaded(inputs) - model(inputs)).abs().max().item()
        print(f"{shape[0]} characters, batch of {shape[1]}: loaded and original differ by {difference:.1e}")
        if difference:
            return 1
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
