"""What takes a clock: a layer's training step and inference, a stream's step, a language model's training step.

Each library's three arms are timed against each other in turns, so that a comparison of cells is a ratio within rounds. All of it
belongs on a machine that does nothing else.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import providers
from ..cases import Case, make_problem
from ..gate import Gate
from ..timing import Contestant, interleave, summarize
from .arms import CLASSES, LSTM, Arm, arms, layer_parameters
from .learning import Language

#: Single steps of a stream that are timed per arm and round.
STEPS_PER_ROUND = 300
LEAST_ROUNDS = 9


def layer(provider: str, mode: str, hidden_size: int, steps: int, batch: int, seconds: float, seed: int) -> dict[str, Any]:
    """-> arm -> seconds per call and speed-up over the LSTM. The layers' inputs are as wide as the LSTM's states."""
    chosen = providers.make(provider)
    contestants = {}
    for arm in arms(hidden_size, lambda cell, size: layer_parameters(cell, hidden_size, size)):
        problem = make_problem(Case(arm.cell, mode, steps, batch, hidden_size, arm.hidden_size), seed)
        prepared = chosen.prepare(problem)
        Gate(problem).check(provider, prepared.results())  # a wrong result's time is nobody's concern
        contestants[arm.name] = prepared.call
    with prepared.scope():  # the same for all
        return _times(contestants, seconds, seed)


def streaming(provider: str, hidden_size: int, seconds: float, seed: int) -> dict[str, Any]:
    """-> arm -> {"p50": ..., "p99": ...}, each as :func:`layer` has it: one step of one sequence, its state carried along.

    torch.nn has no stream: its module is called with one step and the state it returned.
    """
    steps = {}
    for arm in arms(hidden_size, lambda cell, size: layer_parameters(cell, hidden_size, size)):
        torch.manual_seed(seed)
        steps[arm.name] = _step(provider, arm, hidden_size)
    x = torch.randn(1, hidden_size)
    percentiles: dict[str, dict[str, list[float]]] = {name: {"p50": [], "p99": []} for name in steps}
    order, shuffle = list(steps), random.Random(seed).shuffle
    with torch.no_grad():
        for step in steps.values():
            _singles(step, x)
        deadline = time.monotonic() + seconds * len(steps)
        while time.monotonic() < deadline or len(percentiles[LSTM]["p50"]) < LEAST_ROUNDS:
            shuffle(order)
            for name in order:
                singles = _singles(steps[name], x)
                percentiles[name]["p50"].append(statistics.median(singles))
                percentiles[name]["p99"].append(statistics.quantiles(singles, n=100)[-1])
    return {
        name: {key: asdict(summarize(values, percentiles[LSTM][key])) for key, values in own.items()}
        for name, own in percentiles.items()
    }


def _step(provider: str, arm: Arm, input_size: int) -> Callable[[Tensor], object]:
    module = CLASSES[provider][arm.cell](input_size, arm.hidden_size)
    if provider != providers.BASELINE:
        return module.stream().step
    state = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        output, state = module(x, state)
        return output

    return step


def _singles(step: Callable[[Tensor], object], x: Tensor) -> list[float]:
    clock, times = time.perf_counter, []
    for _ in range(STEPS_PER_ROUND):
        begin = clock()
        step(x)
        times.append(clock() - begin)
    return times


def language_step(
    provider: str, compared: list[Arm], characters: int, *, batch: int, length: int, embedding: int, seconds: float, seed: int
) -> dict[str, Any]:
    """-> arm -> seconds per training step of the model that :func:`.learning.learn_language` trains, its optimizer included."""
    text = torch.randint(0, characters, (length + 1, batch), generator=torch.Generator().manual_seed(seed))
    contestants = {}
    for arm in compared:
        torch.manual_seed(seed)
        model = Language(CLASSES[provider][arm.cell](embedding, arm.hidden_size), characters)
        contestants[arm.name] = _language_step(model, text)
    return _times(contestants, seconds, seed)


def _times(steps: dict[str, Callable[[], object]], seconds: float, seed: int) -> dict[str, Any]:
    contestants = {name: Contestant(step, nullcontext) for name, step in steps.items()}
    samples, calls = interleave(contestants, seconds=seconds, min_rounds=LEAST_ROUNDS, seed=seed)
    return {name: asdict(summarize(own, samples[LSTM], calls[name])) for name, own in samples.items()}


def _language_step(model: Language, text: Tensor) -> Callable[[], None]:
    # Learning nothing, so that the weights, and with them the time, stay what they are.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

    def step() -> None:
        logits, _ = model(text[:-1])
        loss = F.cross_entropy(logits.flatten(0, 1), text[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step
