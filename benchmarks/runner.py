"""Cases x providers -> the result file: each provider is checked, then all of a case are timed together."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from rnnkernels import info

from . import machine, providers
from .cases import Case, make_problem
from .gate import Gate, Mismatch
from .timing import Contestant, interleave

#: Grows when a key of the result file changes its meaning or goes away.
SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    seconds: float  # per case and provider
    min_rounds: int
    threads: int
    seed: int


def run(cases: Sequence[Case], contestants: Sequence[providers.Provider], settings: Settings) -> dict[str, Any]:
    """The result file's content. A provider that fails the gate has an "error" in place of times."""
    torch.set_num_threads(settings.threads)
    header = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": info.collect()["versions"],
        "settings": asdict(settings),
        "baseline": providers.BASELINE,
        "load_average_before": machine.load_average(),
    }
    rows = []
    progress = tqdm(cases, unit="case")
    for case in progress:
        progress.set_postfix_str(str(case))
        rows.append({"case": case.as_dict(), "group": case.group, "results": _measure(case, contestants, settings)})
    return {**header, "load_average_after": machine.load_average(), "cases": rows}


def failures(result: dict[str, Any]) -> list[str]:
    """Every provider and case that was refused by the gate."""
    return [
        f"{Case(**row['case'])}: {entry['error']}"
        for row in result["cases"]
        for entry in row["results"].values()
        if "error" in entry
    ]


def _measure(case: Case, contestants: Sequence[providers.Provider], settings: Settings) -> dict[str, dict[str, Any]]:
    problem = make_problem(case, settings.seed)
    gate = Gate(problem)
    results: dict[str, dict[str, Any]] = {}
    timed: dict[str, Contestant] = {}
    for provider in contestants:
        objection = provider.unsupported(case)
        if objection is not None:
            results[provider.name] = {"unsupported": objection}
            continue
        step = provider.prepare(problem)
        try:
            with provider.scope():
                results[provider.name] = {"budget_used": gate.check(provider.name, step())}
        except Mismatch as mismatch:
            results[provider.name] = {"error": str(mismatch)}
        else:
            timed[provider.name] = Contestant(step, provider.scope)
    timings = interleave(
        timed,
        providers.BASELINE,
        seconds=settings.seconds,
        min_rounds=settings.min_rounds,
        threads=settings.threads,
        seed=settings.seed,
    )
    for name, timing in timings.items():
        results[name] |= asdict(timing)
    return results
