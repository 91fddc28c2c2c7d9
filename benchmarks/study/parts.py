"""What is measured, at which sizes: the list of parts, in the order they are run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import providers
from . import ablations, footprint, learning, series, speech, speed, tasks
from .arms import CLASSES, GATES, Arm, arms
from .store import Part


@dataclass(frozen=True)
class Scale:
    """The sizes of a whole study."""

    name: str
    seeds: int
    seconds: float  # of timing, per contestant
    hidden_sizes: tuple[int, ...]  # of layers, T = 50 and N = 32
    stream_sizes: tuple[int, ...]
    language_hidden: int
    language_steps: int
    n_lags: int  # of those in LAGGED, the shortest first
    most_steps: int  # of a task with a lag, whatever it would have
    series_points: tuple[int, ...]
    series_seeds: int
    series_steps: int
    ablated: tuple[str, ...]  # the tasks on which gates are taken away
    ablation_steps: int
    speech_steps: int


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="full",
            seeds=4,
            seconds=0.6,
            hidden_sizes=(64, 128, 256),
            stream_sizes=(16, 64, 256),
            language_hidden=64,
            language_steps=300,
            n_lags=2,
            most_steps=2000,
            series_points=(60, 200),
            series_seeds=6,
            series_steps=200,
            ablated=("adding",),
            ablation_steps=1000,
            speech_steps=100,
        ),
        Scale(
            name="quick",
            seeds=4,
            seconds=0.4,
            hidden_sizes=(64, 128),
            stream_sizes=(16, 64),
            language_hidden=32,
            language_steps=60,
            n_lags=1,
            most_steps=300,
            series_points=(60, 200),
            series_seeds=4,
            series_steps=60,
            ablated=("adding",),
            ablation_steps=200,
            speech_steps=20,
        ),
    )
}

LAYER = {"steps": 50, "batch": 32}
LANGUAGE = {"batch": 32, "length": 64, "embedding": 48}
LANGUAGE_RATE = 4e-3


class Lagged(NamedTuple):
    """A task's sizes. One learning rate for all arms: it was tuned for none of them."""

    hidden_size: int  # of the LSTM
    learning_rate: float
    steps: int
    lags: tuple[int, ...]


LAGGED = {
    "adding": Lagged(32, 5e-3, 2000, (10, 25, 50)),
    "copy memory": Lagged(32, 1e-2, 600, (5, 10, 20)),
    "delayed parity": Lagged(32, 1e-2, 1000, (5, 10, 20)),
}
SERIES = {"hidden_size": 16, "learning_rate": 1e-2}
AGREEMENT_STEPS = 60
#: The lags at which gates are taken away.
ABLATED = {"adding": 25, "copy memory": 5}
BATCH, EVERY = 32, 100


def parts(scale: Scale) -> list[Part]:
    """All parts of a study, those that need the machine for themselves first.

    All compute with one thread: that is how the small models are trained, and two would wait for each other on a busy machine.
    """
    return [
        _footprint(scale),
        _layers(scale),
        _streaming(scale),
        _language_step(scale),
        _language(scale),
        _agreement(scale),
        *(_lagged(name, scale) for name in tasks.LAGGED),
        _ablations(scale),
        _series(scale),
        _speech(scale),
    ]


def _footprint(scale: Scale) -> Part:
    units = {
        f"H={size}": functools.partial(footprint.measure, size, LAYER["steps"], LAYER["batch"], 0) for size in scale.hidden_sizes
    }
    return Part("footprint", units, LAYER, {"hidden_sizes": list(scale.hidden_sizes)}, threads=1)


def _layers(scale: Scale) -> Part:
    units = {
        f"{provider} {mode} H={size}": functools.partial(
            speed.layer, provider, mode, size, LAYER["steps"], LAYER["batch"], scale.seconds, 0
        )
        for size in scale.hidden_sizes
        for mode in ("training", "inference")
        for provider in CLASSES
    }
    settings, extent = LAYER | {"seconds": scale.seconds}, {"hidden_sizes": list(scale.hidden_sizes)}
    return Part("layer times", units, settings, extent, threads=1, timed=True)


def _streaming(scale: Scale) -> Part:
    units = {
        f"{provider} H={size}": functools.partial(speed.streaming, provider, size, scale.seconds, 0)
        for size in scale.stream_sizes
        for provider in CLASSES
    }
    settings, extent = {"seconds": scale.seconds}, {"hidden_sizes": list(scale.stream_sizes)}
    return Part("streaming", units, settings, extent, threads=1, timed=True)


def language_arms(scale: Scale, characters: int) -> list[Arm]:
    """Parameters are the whole model's: embedding, recurrent layer and head."""

    def parameters(cell: str, size: int) -> int:
        rnn = GATES[cell] * size * (LANGUAGE["embedding"] + size + 2)
        return rnn + characters * LANGUAGE["embedding"] + characters * (size + 1)

    return arms(scale.language_hidden, parameters)


def _language_step(scale: Scale) -> Part:
    def unit(provider: str) -> dict[str, Any]:
        characters = tasks.text().characters
        compared = language_arms(scale, characters)
        return speed.language_step(provider, compared, characters, **LANGUAGE, seconds=scale.seconds, seed=0)

    units = {provider: functools.partial(unit, provider) for provider in CLASSES}
    settings = LANGUAGE | {"hidden_size": scale.language_hidden, "seconds": scale.seconds}
    return Part("language step", units, settings, {}, threads=1, timed=True)


def _language(scale: Scale) -> Part:
    text = tasks.text()
    options = {"steps": scale.language_steps, "learning_rate": LANGUAGE_RATE, "every": max(1, scale.language_steps // 20)}

    def unit(arm: Arm, seed: int) -> dict[str, Any]:
        result = learning.learn_language(text, arm.cell, arm.hidden_size, seed, **LANGUAGE, **options)
        return {"curve": result["curve"], "cpu_seconds": result["cpu_seconds"]}

    units = {
        f"{arm.name}, seed {seed}": functools.partial(unit, arm, seed)
        for seed in range(scale.seeds)
        for arm in language_arms(scale, text.characters)
    }
    settings = LANGUAGE | options | {"hidden_size": scale.language_hidden}
    return Part("language", units, settings, {"seeds": scale.seeds}, threads=1)


def _agreement(scale: Scale) -> Part:
    """The same few steps by both libraries, and by torch.nn with weights that are moved by a unit in the last place."""
    text = tasks.text()
    options = {"steps": AGREEMENT_STEPS, "learning_rate": LANGUAGE_RATE, "every": AGREEMENT_STEPS}

    def theirs(cell: str, input_size: int, hidden_size: int) -> nn.Module:
        return CLASSES[providers.BASELINE][cell](input_size, hidden_size)

    def nudge(seed: int) -> Callable[[nn.Module], None]:
        generator = torch.Generator().manual_seed(seed)

        @torch.no_grad()
        def move(model: nn.Module) -> None:
            for weight in model.rnn.parameters():
                weight.mul_(1 + torch.randint(-1, 2, weight.shape, generator=generator) * torch.finfo(weight.dtype).eps)

        return move

    def unit(cell: str) -> dict[str, Any]:
        def losses(**how: Any) -> list[float]:
            result = learning.learn_language(text, cell, scale.language_hidden, 0, **LANGUAGE, **options, **how)
            return result["losses"]

        return {
            providers.OURS: losses(),
            providers.BASELINE: losses(make=theirs),
            **{f"torch.nn, rounded otherwise ({i})": losses(make=theirs, before_step=nudge(i)) for i in (1, 2)},
        }

    units = {cell: functools.partial(unit, cell) for cell in GATES}
    return Part("agreement", units, LANGUAGE | options | {"hidden_size": scale.language_hidden}, {}, threads=1)


def lagged_arms(name: str) -> list[Arm]:
    """Parameters are the whole model's: recurrent layer and head."""
    task = tasks.LAGGED[name](10)
    return arms(
        LAGGED[name].hidden_size,
        lambda cell, size: GATES[cell] * size * (task.inputs + size + 2) + task.outputs * (size + 1),
    )


def _lagged(name: str, scale: Scale) -> Part:
    size, rate, steps, lags = LAGGED[name]
    steps, lags = min(steps, scale.most_steps), lags[: scale.n_lags]
    options = {"steps": steps, "batch": BATCH, "learning_rate": rate, "every": min(EVERY, steps)}
    units = {
        f"{arm.name}, lag {lag}, seed {seed}": functools.partial(
            learning.learn_lagged, tasks.LAGGED[name](lag), arm.cell, arm.hidden_size, seed, **options
        )
        for lag in lags
        for seed in range(scale.seeds)
        for arm in lagged_arms(name)
    }
    return Part(name, units, options | {"hidden_size": size}, {"lags": list(lags), "seeds": scale.seeds}, threads=1)


def _ablations(scale: Scale) -> Part:
    options = {"steps": scale.ablation_steps, "batch": BATCH, "every": min(EVERY, scale.ablation_steps)}
    lags = {name: ABLATED[name] for name in scale.ablated}

    def unit(name: str, lag: int, variant: ablations.Variant, seed: int) -> dict[str, Any]:
        own, task = LAGGED[name], tasks.LAGGED[name](lag)
        how = options | {"learning_rate": own.learning_rate, "make": variant.make}
        return learning.learn_lagged(task, variant.cell, own.hidden_size, seed, **how)

    units = {
        f"{name}, {variant.name}, seed {seed}": functools.partial(unit, name, lag, variant, seed)
        for name, lag in lags.items()
        for seed in range(scale.seeds)
        for variant in ablations.VARIANTS
    }
    return Part("ablations", units, options, {"lags": lags, "seeds": scale.seeds}, threads=1)


def _series(scale: Scale) -> Part:
    size, rate = SERIES["hidden_size"], SERIES["learning_rate"]
    compared = arms(size, lambda cell, hidden: GATES[cell] * hidden * (1 + hidden + 2) + hidden + 1)

    def unit(name: str, points: int) -> dict[str, Any]:
        return {
            "autoregression": series.autoregression(name, points),
            "arms": {
                arm.name: [
                    series.forecast(name, points, arm.cell, arm.hidden_size, seed, steps=scale.series_steps, learning_rate=rate)
                    for seed in range(scale.series_seeds)
                ]
                for arm in compared
            },
        }

    units = {
        f"{name}, {points} points": functools.partial(unit, name, points)
        for name in series.NAMES
        for points in scale.series_points
    }
    settings, extent = SERIES | {"steps": scale.series_steps, "seeds": scale.series_seeds}, {"points": list(scale.series_points)}
    return Part("series", units, settings, extent, threads=1, objection=series.missing())


def _speech(scale: Scale) -> Part:
    units = {
        f"{arm.name}, seed {seed}": functools.partial(speech.learn, arm.cell, arm.hidden_size, seed, steps=scale.speech_steps)
        for seed in range(scale.seeds)
        for arm in speech.compared()
    }
    settings = speech.SETTINGS | {"steps": scale.speech_steps}
    return Part("speech", units, settings, {"seeds": scale.seeds}, threads=1, objection=speech.missing())
