"""Trains a character language model with torch.nn and with rnnkernels, on the same batches from the same initial weights.

The text is the English of Python's own language reference, which every installation carries (``pydoc_data.topics``). For LSTM
and GRU it prints the largest difference between both loss curves, the time per step of both, and a line of sampled text, and
it saves a plot.

Training is chaotic: in float32 two correct runs that round differently drift apart exponentially. How far is measured along the
way, by training torch.nn twice more with its recurrent weights moved by at most one unit in the last place before each step:
rnnkernels may differ from torch.nn by twice what these runs differ by among each other, else the exit status is 1.

    python examples/char_language_model.py          # or: make demo
"""

from __future__ import annotations

import argparse
import copy
import itertools
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import rnnkernels

OURS, THEIRS = "rnnkernels", "torch.nn"
OUT = Path(__file__).resolve().parent.parent / "out"


class CharModel(nn.Module):
    """(T, N) characters -> (T, N, characters) logits of the next one."""

    def __init__(self, rnn_class: type[nn.RNNBase], characters: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.rnn = rnn_class(64, hidden_size)
        self.head = nn.Linear(hidden_size, characters)

    def forward(self, text: Tensor, state=None) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        output, state = self.rnn(self.embedding(text), state)
        return self.head(output), state


@dataclass
class Run:
    """One model in training, and what is known of it."""

    model: CharModel
    before_step: Callable[[], None] = lambda: None
    state: Tensor | tuple[Tensor, Tensor] | None = None
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=4e-3)

    def step(self, text: Tensor, target: Tensor) -> None:
        self.before_step()
        start = time.perf_counter()
        logits, state = self.model(text, self.state)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)
        # The next batch continues the text where this one ends; its gradient does not reach back.
        self.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def load_text() -> tuple[Tensor, str]:
    """The text as indices into the sorted characters that occur in it."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    characters = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(characters)}
    return torch.tensor([index[character] for character in text]), characters


def batches(text: Tensor, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end: (length, batch_size) characters and their successors. Each column reads its own stretch of the text."""
    stretch = len(text) // batch_size
    columns = text[: stretch * batch_size].view(batch_size, stretch).t()
    for start in itertools.cycle(range(0, stretch - length, length)):
        yield columns[start : start + length], columns[start + 1 : start + length + 1]


def nudge_weights(rnn: nn.Module, seed: int) -> Callable[[], None]:
    """A function that moves each weight of ``rnn`` by -1, 0 or 1 unit in the last place: another way to round."""
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def nudge() -> None:
        for weight in rnn.parameters():
            ulps = torch.randint(-1, 2, weight.shape, generator=generator)
            weight.mul_(1 + ulps * torch.finfo(weight.dtype).eps)

    return nudge


def make_runs(rnn_class: type[nn.RNNBase], characters: int, hidden_size: int) -> dict[str, Run]:
    torch.manual_seed(0)
    model = CharModel(rnn_class, characters, hidden_size)
    runs = {THEIRS: Run(model), OURS: Run(copy.deepcopy(model))}
    rnnkernels.replace_rnn_modules(runs[OURS].model)  # the one line that a user of torch.nn adds
    for seed in (1, 2):
        nudged = copy.deepcopy(model)
        runs[f"{THEIRS}, rounded otherwise ({seed})"] = Run(nudged, nudge_weights(nudged.rnn, seed))
    return runs


def train(runs: dict[str, Run], text: Tensor, steps: int, length: int, batch_size: int, label: str) -> None:
    """All runs side by side on each batch, so that a busy moment of the machine slows all of them."""
    for batch in tqdm(itertools.islice(batches(text, length, batch_size), steps), label, steps, unit="step"):
        for run in runs.values():
            run.step(*batch)


def largest_difference(first: Run, second: Run) -> float:
    return max(abs(a - b) for a, b in zip(first.losses, second.losses, strict=True))


def rounding_bound(runs: dict[str, Run]) -> float:
    """Twice what runs of torch.nn differ by that only round differently, and not less than two ulp of a loss."""
    torchs = [run for name, run in runs.items() if name != OURS]
    spread = max(largest_difference(a, b) for a, b in itertools.combinations(torchs, 2))
    return 2 * max(spread, torch.finfo(torch.float32).eps * max(torchs[0].losses))


@torch.no_grad()
def sample(model: CharModel, characters: str, prompt: str, length: int, temperature: float = 0.5, seed: int = 0) -> str:
    """``prompt`` continued by ``length`` characters, drawn one by one."""
    generator = torch.Generator().manual_seed(seed)
    text = [characters.index(character) for character in prompt]
    logits, state = model(torch.tensor(text)[:, None])
    for _ in range(length):
        probabilities = F.softmax(logits[-1, 0] / temperature, dim=-1)
        text.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        logits, state = model(torch.tensor([text[-1:]]), state)
    return "".join(characters[i] for i in text)


def plot(results: dict[str, dict[str, Run]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(results), figsize=(6 * len(results), 7), sharex=True, squeeze=False)
    for (upper, lower), (cell, runs) in zip(axes.T, results.items(), strict=True):
        for name, style in ((THEIRS, "-"), (OURS, "--")):
            upper.plot(runs[name].losses, style, label=name)
        for name, run in runs.items():
            if run is not runs[THEIRS]:
                differences = [abs(a - b) for a, b in zip(run.losses, runs[THEIRS].losses, strict=True)]
                # A logarithmic axis has no zero: equal losses are drawn at the smallest difference there can be.
                lower.semilogy(
                    [max(d, torch.finfo(torch.float32).eps) for d in differences],
                    label=name,
                    color=None if name == OURS else "0.7",
                )
        upper.set(title=cell, ylabel="loss")
        lower.set(xlabel="step", ylabel=f"difference from {THEIRS}")
        upper.legend()
        lower.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="characters per sequence and step")
    parser.add_argument("--out", type=Path, default=OUT / "char_language_model.png", help="the plot (default: %(default)s)")
    options = parser.parse_args(arguments)

    text, characters = load_text()
    print(f"{len(text):,} characters of English, {len(characters)} different; {torch.get_num_threads()} threads")
    results, passed = {}, True
    for rnn_class in (nn.LSTM, nn.GRU):
        cell = rnn_class.__name__
        runs = results[cell] = make_runs(rnn_class, len(characters), options.hidden_size)
        train(runs, text, options.steps, options.length, options.batch_size, cell)
        ours, theirs = runs[OURS], runs[THEIRS]
        difference, bound = largest_difference(ours, theirs), rounding_bound(runs)
        ours_ms, theirs_ms = (1e3 * statistics.median(run.seconds) for run in (ours, theirs))
        passed &= difference <= bound
        line = " ".join(sample(ours.model, characters, "The ", 200).split())
        print(
            f"{cell}: loss {theirs.losses[0]:.3f} -> {theirs.losses[-1]:.3f} ({THEIRS}), {ours.losses[-1]:.3f} ({OURS})\n"
            f"  largest difference of the curves {difference:.1e}, rounding alone explains {bound:.1e}: "
            f"{'within' if difference <= bound else 'TOO LARGE'}\n"
            f"  time per step, median: {THEIRS} {theirs_ms:.1f} ms, {OURS} {ours_ms:.1f} ms: "
            f"{theirs_ms / ours_ms:.2f} times as fast\n"
            f"  {OURS} writes: {line}"
        )
    plot(results, options.out)
    print(f"both curves: {options.out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
