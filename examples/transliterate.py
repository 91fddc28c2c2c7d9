"""Writes romanised Korean in Hangul: an LSTM reads the letters, a GRU writes, and attention lets it look where it reads.

Unicode names every one of the 11,172 syllables by its romanisation, 값 is HANGUL SYLLABLE GABS, and splits each into its
letters, ㄱㅏㅄ: Python ships both (``unicodedata``). The model learns the second from the first on some syllables and is tested
on all others.

    python examples/transliterate.py
"""

from __future__ import annotations

import argparse
import random
import sys
import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

import rnnkernels

FIRST, COUNT = 0xAC00, 11172
END = 0  # of what is written; also what stands before its beginning, and padding
Pair = tuple[str, str]  # romanised, letters


def syllables() -> list[Pair]:
    """All of them: ("GABS", the three letters that NFD splits 값 into)."""
    characters = [chr(code) for code in range(FIRST, FIRST + COUNT)]
    return [(unicodedata.name(c).removeprefix("HANGUL SYLLABLE "), unicodedata.normalize("NFD", c)) for c in characters]


class Alphabet:
    """Characters as indices from 1 on."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.characters = sorted(set("".join(texts)))
        self.index = {character: i + 1 for i, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.index[character] for character in text])

    def decode(self, indices: Sequence[int]) -> str:
        """Up to the end mark."""
        return "".join(self.characters[i - 1] for i in [*indices[: [*indices, END].index(END)]])


class Transliterator(nn.Module):
    """T letters in, S letters out, N words, H hidden units, in each of the encoder's directions half as many."""

    def __init__(self, letters_in: int, letters_out: int, hidden_size: int) -> None:
        super().__init__()
        self.embed_in, self.embed_out = nn.Embedding(letters_in, 32), nn.Embedding(letters_out, 32)
        self.encoder = rnnkernels.LSTM(32, hidden_size // 2, bidirectional=True)
        self.decoder = rnnkernels.GRU(32, hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.head = nn.Linear(2 * hidden_size, letters_out)

    def encode(self, words: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """-> what was read (T, N, H), which of it is padding (T, N), and the decoder's first state (1, N, H)."""
        packed = pack_sequence(list(words), enforce_sorted=False)
        output, (h_n, _) = self.encoder(packed._replace(data=self.embed_in(packed.data)))
        memory, lengths = pad_packed_sequence(output)
        padding = torch.arange(len(memory))[:, None] >= lengths
        return memory, padding, torch.cat((h_n[0], h_n[1]), dim=-1)[None]

    def decode(self, before: Tensor, state: Tensor, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The letters so far (S, N) -> logits of the next ones (S, N, letters), the state, and attention (S, N, T)."""
        output, state = self.decoder(self.embed_out(before), state)
        scores = torch.einsum("snh,tnh->snt", self.query(output), memory).masked_fill(padding.t(), -torch.inf)
        attention = scores.softmax(-1)
        context = torch.einsum("snt,tnh->snh", attention, memory)
        return self.head(torch.cat((output, context), dim=-1)), state, attention


def loss_of(model: Transliterator, words: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
    """The decoder sees the right letters before each that it is to write."""
    target = pad_sequence([F.pad(answer, (0, 1), value=END) for answer in answers], padding_value=-100)
    before = pad_sequence([F.pad(answer, (1, 0), value=END) for answer in answers], padding_value=END)
    memory, padding, state = model.encode(words)
    logits, _, _ = model.decode(before, state, memory, padding)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@torch.no_grad()
def write(model: Transliterator, words: Sequence[Tensor], longest: int = 4) -> tuple[Tensor, Tensor]:
    """The likeliest letter at every step (longest, N), and what was looked at (longest, N, T)."""
    memory, padding, state = model.encode(words)
    letter = torch.full((1, len(words)), END)
    letters, looks = [], []
    for _ in range(longest):
        logits, state, attention = model.decode(letter, state, memory, padding)
        letter = logits.argmax(-1)
        letters.append(letter)
        looks.append(attention)
    return torch.cat(letters), torch.cat(looks)


def train(model: Transliterator, words: Sequence[Tensor], answers: Sequence[Tensor], steps: int, batch_size: int) -> list[float]:
    """-> the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(0, len(words), (batch_size,)).tolist()
        loss = loss_of(model, [words[i] for i in chosen], [answers[i] for i in chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--training-words", type=int, default=3000, help="the others are for the test")
    options = parser.parse_args(arguments)

    pairs = syllables()
    random.Random(0).shuffle(pairs)
    letters_in, letters_out = (Alphabet(side) for side in zip(*pairs, strict=True))
    words = [letters_in.encode(word) for word, _ in pairs]
    answers = [letters_out.encode(answer) for _, answer in pairs]
    torch.manual_seed(0)
    model = Transliterator(len(letters_in), len(letters_out), options.hidden_size)
    n = options.training_words
    losses = train(model, words[:n], answers[:n], options.steps, options.batch_size)
    print(f"trained on {n} syllables: loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    letters, looks = write(model, words[n:])
    written = [letters_out.decode(column) for column in letters.t().tolist()]
    right = sum(own == answer for own, (_, answer) in zip(written, pairs[n:], strict=True))
    print(f"{right / len(written):.1%} of the other {len(written)} written right, for example:")
    for i in range(5):
        word = pairs[n + i][0]
        seen = " ".join(word[position] for position in looks[: len(written[i]), i, : len(word)].argmax(-1))
        print(f"  {word:<8} {unicodedata.normalize('NFC', written[i])}   looking at {seen}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
