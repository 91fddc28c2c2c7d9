"""Forecasts the air's CO2 at Mauna Loa live: a GRU is trained on the past, then gets one measurement at a time by a stream.

    pip install statsmodels          # ships the weekly measurements of 1958 to 2001
    python examples/forecast_stream.py [--cell lstm]

Shown are the error of the forecasts of the next week, against "as it is now", and the time from a measurement to its forecast.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import rnnkernels


class Forecaster(nn.Module):
    """(T, N, 3) measurements -> (T, N, 1) changes to the next one."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def missing() -> str | None:
    """Why there are no measurements, or None."""
    return None if importlib.util.find_spec("statsmodels") else "statsmodels is not installed: pip install statsmodels"


def load() -> tuple[Tensor, Tensor]:
    """Parts per million by week (weeks,), and the time of year of each, in turns (weeks,). Gaps are filled by straight lines."""
    from statsmodels.datasets import co2

    weeks = co2.load_pandas().data["co2"].interpolate()
    return torch.tensor(weeks.to_numpy(), dtype=torch.float32), torch.tensor(weeks.index.day_of_year.to_numpy() / 365.25).float()


def features(ppm: Tensor, turns: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of each week but the first: the change since the last and the season (weeks - 1, 3), and the change alone (weeks - 1,)."""
    change = ppm.diff() / scale
    angle = 2 * torch.pi * turns[1:]
    return torch.stack((change, angle.sin(), angle.cos()), dim=-1), change


def train(model: Forecaster, x: Tensor, change: Tensor, steps: int) -> list[float]:
    """On the whole past as one sequence -> the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = (model(x[:-1, None])[:, 0, 0] - change[1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def live(model: Forecaster, past: Tensor, coming: Tensor) -> tuple[Tensor, list[float]]:
    """Feed the past, then the coming weeks one at a time -> the forecast made at each, and the seconds that it took."""
    stream = model.rnn.stream()
    for x in past:
        stream.step(x)
    forecasts, seconds = [], []
    for x in coming:
        begin = time.perf_counter()
        forecast = model.head(stream.step(x))
        seconds.append(time.perf_counter() - begin)
        forecasts.append(forecast)
    return torch.cat(forecasts), seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cell", choices=("lstm", "gru"), default="gru")
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--test-weeks", type=int, default=520)
    options = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        print(reason, file=sys.stderr)
        return 2

    torch.set_num_threads(1)  # a step this small gains nothing from a second one
    torch.manual_seed(0)
    ppm, turns = load()
    cut = len(ppm) - options.test_weeks - 1
    scale = ppm[:cut].diff().std()
    x, change = features(ppm, turns, scale)
    past, coming = x[: cut - 1], x[cut - 1 : -1]

    rnn = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[options.cell](3, options.hidden_size)
    model = Forecaster(rnn)
    losses = train(model, past, change[: cut - 1], options.steps)
    print(f"trained on {len(past)} weeks: loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    forecasts, seconds = live(model, past, coming)
    with torch.no_grad():
        at_once = model(x[:-1, None])[cut - 1 :, 0, 0]
    print(f"streamed one by one and computed at once, forecasts differ by at most {(forecasts - at_once).abs().max():.1e}")
    error, persistence = ((f - change[cut:]).square().mean().sqrt() * scale for f in (forecasts, torch.zeros(())))
    print(f'error of {len(forecasts)} forecasts: {error:.2f} ppm; of "as it is now": {persistence:.2f} ppm')
    microseconds = [1e6 * s for s in seconds]
    p50, p99 = statistics.median(microseconds), statistics.quantiles(microseconds, n=100)[-1]
    print(f"from a measurement to its forecast: p50 {p50:.1f} µs, p99 {p99:.1f} µs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
