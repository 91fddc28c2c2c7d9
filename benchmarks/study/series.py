"""Little data: forecasting real series one step ahead from their last few dozen or hundred points (statsmodels ships them).

The yardstick is persistence, "as it was last time". A linear autoregression fitted to the same points stands beside the networks.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from typing import Any

import torch
from torch import Tensor, nn

from .learning import MakeRNN, ours

NAMES = ("sunspots", "elnino", "co2")
TEST_POINTS = 100


def missing() -> str | None:
    """Why there are no series, or None."""
    return None if importlib.util.find_spec("statsmodels") else "statsmodels is not installed: pip install statsmodels"


def load(name: str) -> Tensor:
    """(points,): sunspots of a year, 1700-2008; the sea's temperature off Peru by month, 1950-2010, less its month's mean; the
    change of the air's CO2 at Mauna Loa from month to month, 1958-2001."""
    from statsmodels import datasets

    data = getattr(datasets, name).load_pandas().data
    if name == "sunspots":
        values = data["SUNACTIVITY"].to_numpy()
    elif name == "elnino":
        by_month = data.drop(columns="YEAR").to_numpy()
        values = (by_month - by_month[:-9].mean(axis=0)).ravel()  # without the years that are tested on
    else:
        values = data["co2"].resample("MS").mean().interpolate().diff().dropna().to_numpy()
    return torch.tensor(values.copy(), dtype=torch.float32)


class Forecaster(nn.Module):
    """(T, N, 1) -> (T, N, 1): after each point, the change to the next."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def forecast(
    name: str, points: int, cell: str, hidden_size: int, seed: int, *, steps: int, learning_rate: float, make: MakeRNN = ours
) -> dict[str, Any]:
    """Train on the ``points`` before the last :data:`TEST_POINTS` -> the error on those, as a share of persistence's.

    The last fifth of the training points is not trained on: it says after which step to stop.
    """
    series, train, validation, test = _parts(load(name), points)
    torch.manual_seed(seed)
    model = Forecaster(make(cell, 1, hidden_size))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    x, change = series[:-1, None, None], series.diff()[:, None, None]
    best, chosen, kept = torch.inf, 0, copy.deepcopy(model.state_dict())
    begin = time.process_time()
    for step in range(1, steps + 1):
        # Up to the end of validation: what comes after must not be seen.
        errors = (model(x[: test.start]) - change[: test.start]).square()
        loss = errors[train].mean()
        now = errors[validation].mean().item()
        if now < best:
            best, chosen, kept = now, step - 1, copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.load_state_dict(kept)
    with torch.no_grad():
        error = (model(x) - change)[test].square().mean().sqrt().item()
    return {
        "error": round(error / _persistence(series, test), 5),
        "stopped_at": chosen,
        "cpu_seconds": round(time.process_time() - begin, 2),
    }


def autoregression(name: str, points: int, order: int = 12) -> float:
    """The error of least squares on the last ``order`` points, fitted to all training points, as a share of persistence's."""
    series, train, validation, test = _parts(load(name), points)
    windows = series.double().unfold(0, order, 1)[:-1]  # windows[i] ends with point i + order - 1
    inputs = torch.cat((windows, torch.ones(len(windows), 1, dtype=torch.float64)), dim=1)
    target = series.double()[order:]
    fitted = slice(max(train.start, order - 1) - order + 1, validation.stop - order + 1)
    weights = torch.linalg.lstsq(inputs[fitted], target[fitted, None]).solution
    tested = slice(test.start - order + 1, test.stop - order + 1)
    error = (inputs[tested] @ weights - target[tested, None]).square().mean().sqrt().item()
    return round(error / _persistence(series, test), 5)


def _parts(series: Tensor, points: int) -> tuple[Tensor, slice, slice, slice]:
    """The last points, standardised by those to train on, and the steps (from a point to the next) of each part."""
    series = series[-(points + TEST_POINTS + 1) :]
    if len(series) != points + TEST_POINTS + 1:
        raise ValueError(f"the series has {len(series)} points, too few for {points} to train on and {TEST_POINTS} to test")
    cut = points - points // 5
    series = (series - series[:points].mean()) / series[:points].std()
    return series, slice(0, cut), slice(cut, points), slice(points, points + TEST_POINTS)


def _persistence(series: Tensor, test: slice) -> float:
    return series.diff()[test].square().mean().sqrt().item()
