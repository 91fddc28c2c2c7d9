"""Recognises ten spoken commands with a bidirectional LSTM or GRU on packed batches.

The words are spoken by espeak-ng, in English accents and voices at several speeds; the voices of the test are never trained on.

    apt-get install espeak-ng        # or: brew install espeak-ng, dnf install espeak-ng
    python examples/speech_commands.py [--cell gru]

Without espeak-ng it says so and exits with status 2.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnkernels

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029")
TRAINING_VOICES, TEST_VOICES = ("m1", "m2", "m3", "f1", "f2"), ("m7", "f4", "f5")
SPEEDS = (120, 160, 200)  # words per minute
RATE, WINDOW, HOP, MELS = 22050, 512, 220, 40  # samples per second, per window, per frame (10 ms); bands


class Utterance(NamedTuple):
    features: Tensor  # (frames, MELS)
    word: int  # of WORDS


def missing() -> str | None:
    """Why there is no speech, or None."""
    return None if shutil.which("espeak-ng") else "espeak-ng is not installed: apt-get install espeak-ng"


def say(word: str, accent: str, voice: str, speed: int, file: Path) -> Tensor:
    """(samples,) in [-1, 1]."""
    subprocess.run(["espeak-ng", "-v", f"{accent}+{voice}", "-s", str(speed), "-w", file, word], check=True)
    with wave.open(str(file)) as sound:
        if sound.getframerate() != RATE:
            raise RuntimeError(f"espeak-ng speaks at {sound.getframerate()} Hz, expected {RATE}")
        samples = bytearray(sound.readframes(sound.getnframes()))
    return torch.frombuffer(samples, dtype=torch.int16).float() / 2**15


def mel_bands() -> Tensor:
    """(WINDOW // 2 + 1, MELS): triangles, evenly spaced on the mel scale, m = 2595 log10(1 + f / 700 Hz)."""
    top = 2595 * torch.log10(torch.tensor(1 + RATE / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, top.item(), MELS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(samples: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """(samples,) -> (frames, MELS): log energies, with noise of a share of the speech's own level, standardised per band."""
    samples = samples + noise * samples.std() * torch.randn(samples.shape, generator=generator)
    spectrum = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    energies = (spectrum.T @ mel_bands() + 1e-6).log()
    return (energies - energies.mean(0)) / (energies.std(0) + 1e-3)


def speech(voices: Sequence[str], accents: Sequence[str], speeds: Sequence[int], noise: float, seed: int) -> list[Utterance]:
    """Every word by every voice in every accent and speed."""
    spoken = [(w, a, v, s) for w in range(len(WORDS)) for a in accents for v in voices for s in speeds]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:

        def samples(i: int) -> Tensor:
            word, accent, voice, speed = spoken[i]
            return say(WORDS[word], accent, voice, speed, Path(folder) / f"{i}.wav")

        sounds = list(pool.map(samples, range(len(spoken))))
    generator = torch.Generator().manual_seed(seed)
    return [Utterance(log_mel(sound, noise, generator), word) for sound, (word, *_) in zip(sounds, spoken, strict=True)]


class Recogniser(nn.Module):
    """A packed batch of features -> (N, words) logits, from where both directions end."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(2 * rnn.hidden_size, len(WORDS))

    def forward(self, features: PackedSequence) -> Tensor:
        _, state = self.rnn(features)
        h_n = state[0] if isinstance(state, tuple) else state  # (layers * 2, N, H)
        return self.head(torch.cat((h_n[-2], h_n[-1]), dim=-1))


def collate(utterances: Sequence[Utterance]) -> tuple[PackedSequence, Tensor]:
    """Lengths differ: nothing is padded."""
    packed = pack_sequence([utterance.features for utterance in utterances], enforce_sorted=False)
    return packed, torch.tensor([utterance.word for utterance in utterances])


def train(
    model: Recogniser, utterances: Sequence[Utterance], steps: int, batch_size: int = 32, learning_rate: float = 3e-3
) -> list[float]:
    """-> the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(0, len(utterances), (batch_size,)).tolist()
        features, words = collate([utterances[i] for i in chosen])
        loss = F.cross_entropy(model(features), words)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def recognise(model: Recogniser, utterances: Sequence[Utterance]) -> Tensor:
    """(N,): the word each utterance is taken for."""
    return model(collate(utterances)[0]).argmax(-1)


def accuracy(model: Recogniser, utterances: Sequence[Utterance]) -> float:
    return (recognise(model, utterances) == torch.tensor([u.word for u in utterances])).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cell", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--noise", type=float, default=0.5, help="as a share of the speech's level (default: %(default)s)")
    parser.add_argument("--accents", nargs="+", default=ACCENTS, metavar="ACCENT")
    parser.add_argument("--speeds", type=int, nargs="+", default=SPEEDS, metavar="WORDS", help="per minute")
    options = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        print(reason, file=sys.stderr)
        return 2

    training = speech(TRAINING_VOICES, options.accents, options.speeds, options.noise, seed=0)
    test = speech(TEST_VOICES, options.accents, options.speeds, options.noise, seed=1)
    frames = [len(utterance.features) for utterance in training]
    print(f"{len(training)} utterances of {min(frames)} to {max(frames)} frames to train on, {len(test)} by other voices to test")
    torch.manual_seed(0)
    rnn = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[options.cell](MELS, options.hidden_size, bidirectional=True)
    model = Recogniser(rnn)
    losses = train(model, training, options.steps)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    taken_for = recognise(model, test).tolist()
    for word, name in enumerate(WORDS):
        answers = [taken for taken, utterance in zip(taken_for, test, strict=True) if utterance.word == word]
        wrong = sorted({WORDS[answer] for answer in answers if answer != word})
        right = sum(answer == word for answer in answers)
        print(f"  {name:<6} {right:>3} of {len(answers)}{'  taken for ' + ', '.join(wrong) if wrong else ''}")
    print(f"{accuracy(model, test):.1%} of the voices that were never heard recognised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
