"""Spoken words: the recogniser of examples/speech_commands.py, on fewer utterances and in more noise."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .arms import GATES, Arm, arms
from .learning import ours

#: Of the recogniser's recurrent layer; what is heard, in how much noise, and how it is trained.
SETTINGS: dict[str, Any] = {
    "hidden_size": 32,
    "accents": ["en-us", "en-gb"],
    "speeds": [120, 180],
    "noise": 1.0,
    "batch": 32,
    "learning_rate": 3e-3,
}
_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "speech_commands.py"


def example() -> ModuleType:
    """The example as a module: examples/ is no package."""
    name = "rnnkernels_example_speech_commands"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _EXAMPLE)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def missing() -> str | None:
    """Why there is no speech, or None."""
    return example().missing()


def compared() -> list[Arm]:
    """Parameters are the whole model's: both directions and the head."""
    words, mels = len(example().WORDS), example().MELS
    return arms(SETTINGS["hidden_size"], lambda cell, size: 2 * GATES[cell] * size * (mels + size + 2) + words * (2 * size + 1))


@functools.cache
def _utterances(test: bool) -> list[Any]:
    voices = example().TEST_VOICES if test else example().TRAINING_VOICES
    return example().speech(voices, SETTINGS["accents"], SETTINGS["speeds"], SETTINGS["noise"], seed=int(test))


def learn(cell: str, hidden_size: int, seed: int, *, steps: int) -> dict[str, Any]:
    """-> the share of words of unheard voices that are recognised after ``steps``, and every training loss."""
    training, test = _utterances(False), _utterances(True)
    torch.manual_seed(seed)
    model = example().Recogniser(ours(cell, example().MELS, hidden_size, bidirectional=True))
    begin = time.process_time()
    losses = example().train(model, training, steps, SETTINGS["batch"], SETTINGS["learning_rate"])
    return {
        "accuracy": round(example().accuracy(model, test), 5),
        "losses": [round(loss, 5) for loss in losses],
        "cpu_seconds": round(time.process_time() - begin, 2),
    }
