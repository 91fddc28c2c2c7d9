"""Cases x providers -> the result file: each provider is checked, then all of a case are timed together."""

from __future__ import annotations

import datetime
import functools
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from rnnkernels import info

from . import baseline, flops, machine, memory, providers, timing, wall
from .cases import Case, Problem, make_problem
from .gate import Gate, Mismatch
from .providers.base import within
from .results import SCHEMA, Result, Row

#: Keys of a result that a run that is taken up again must share with it.
_SAME = ("schema", "commit", "machine", "versions", "settings", "baseline", "device", "absent", "switches")


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    seconds: float  # per case and provider
    min_rounds: int
    threads: int
    seed: int
    cold_rounds: int = 0  # timings of a single call, the caches emptied before each
    memory: bool = True  # peaks of calls that keep what backward needs
    device: str = "cpu"
    tf32: bool | None = None  # float32 products on a GPU in TF32; None leaves torch's switches as they are


class OtherSettings(ValueError):
    """A run cannot be taken up again: its file was made under other settings, or on something else."""


def run(
    cases: Sequence[Case],
    contestants: Sequence[providers.Provider],
    settings: Settings,
    earlier: Result | None = None,
    save: Callable[[Result], None] = lambda result: None,
    quiet: bool = False,
) -> Result:
    """The result file's content. A provider that fails the gate has an "error" in place of times.

    Args:
        earlier: a result to take up again; its cases are not measured anew.
        save: called with what there is after every case.
        quiet: show no progress.

    Raises:
        OtherSettings: ``earlier`` does not fit.
    """
    torch.set_num_threads(settings.threads)
    if settings.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    absent = {provider.name: provider.absent for provider in contestants if provider.absent is not None}
    contestants = [provider for provider in contestants if provider.absent is None]
    result: Result = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(settings.device),
        "versions": info.collect()["versions"] | {p.name: p.version for p in contestants if p.version is not None},
        "environment": machine.environment(),
        "switches": machine.switches(),
        "clocks": machine.clocks(settings.device),
        "settings": asdict(settings),
        "device": settings.device,
        "baseline": providers.BASELINE,
        "absent": absent,
        "load_average_before": machine.load_average(),
        "cases": [],
    }
    rows: dict[Case, Row] = {}
    if earlier is not None:
        rows = {Case(**row["case"]): row for row in earlier["cases"]}
        _check_same(result, earlier, [str(case) for case in rows if case not in set(cases)])
        result |= {key: earlier[key] for key in ("date", "load_average_before", "wall", "clocks")}
    else:
        result["wall"] = wall.measure(settings.threads, settings.device, min(0.2, settings.seconds))
    progress = tqdm(cases, unit="case", disable=quiet)
    for case in progress:
        progress.set_postfix_str(str(case))
        if case not in rows:
            rows[case] = _row(case, contestants, settings, result["wall"])
            result["cases"] = [rows[case] for case in cases if case in rows]
            save(result)
    result["cases"] = [rows[case] for case in cases]
    return {**result, "load_average_after": machine.load_average()}


def failures(result: Result) -> dict[str, list[str]]:
    """By provider, the cases that were refused by the gate, each with the reason."""
    refused: dict[str, list[str]] = {}
    for row in result["cases"]:
        for name, entry in row["results"].items():
            if "error" in entry:
                refused.setdefault(name, []).append(f"{Case(**row['case'])}: {entry['error']}")
    return refused


def _check_same(result: Result, earlier: Result, strangers: Sequence[str]) -> None:
    now, then = _flat({key: result[key] for key in _SAME}), _flat({key: earlier.get(key) for key in _SAME})
    different = [f"{key} was {then.get(key)}, is {now.get(key)}" for key in now | then if now.get(key) != then.get(key)]
    different += [f"it has {strangers[0]}, which this run does not"] if strangers else []
    if different:
        raise OtherSettings(f"the earlier run cannot be taken up again: {'; '.join(different)}")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(part, f"{name}.{key}" if name else key) for key, part in value.items())
    return {key: part for flat in parts for key, part in flat.items()}


def _row(case: Case, contestants: Sequence[providers.Provider], settings: Settings, limits: dict[str, Any]) -> Row:
    problem = make_problem(case, settings.seed, settings.device)
    rows = sum(problem.lengths)
    seconds = min(0.01, settings.seconds)
    others = machine.Others()
    walls: list[float | None] = []
    with _kept_on(settings.threads):
        measured, ready = _measure(
            problem, contestants, settings, lambda: walls.append(wall.rate(case, limits, settings.threads, seconds))
        )
    share_of_others = others.share()  # before processes of this run's own are started
    for name, entry in _peaks(case, ready, contestants, settings).items():
        measured[name] |= entry
    row: Row = {
        "case": case.as_dict(),
        "group": case.group,
        "rows": rows,
        "operations": flops.operations(case, rows),
        "wall_flops": statistics.median(known) if (known := [rate for rate in walls if rate]) else None,
        "others_share": share_of_others,
        "baseline_kernel": baseline.kernel(case, settings.device),
        "results": measured,
    }
    for name, entry in measured.items():
        if (share := wall.share(row, name)) is not None:
            entry["wall_share"] = round(share, 4)
    return row


@contextmanager
def _kept_on(threads: int) -> Iterator[None]:
    """No peer changes torch's threads for the others."""
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(threads)


def _measure(
    problem: Problem, contestants: Sequence[providers.Provider], settings: Settings, beside: Callable[[], object]
) -> tuple[dict[str, dict[str, Any]], dict[str, timing.Contestant]]:
    """-> entries by provider, and who was timed."""
    case = problem.case
    gate = Gate(problem)
    results: dict[str, dict[str, Any]] = {}
    ready: dict[str, timing.Contestant] = {}
    for provider in contestants:
        objection = provider.unsupported(case)
        if objection is not None:
            results[provider.name] = {"unsupported": objection}
            continue
        try:
            with provider.scope():
                prepared = provider.prepare(problem)
                results[provider.name] = {"budget_used": gate.check(provider.name, prepared.results(), provider.omits)}
        except Mismatch as mismatch:
            results[provider.name] = {"error": str(mismatch)}
            continue
        except Exception as error:  # a peer that fails is refused, too: the others are still measured
            if provider.name == providers.BASELINE:
                raise
            results[provider.name] = {"error": f"{provider.name} failed: {type(error).__name__}: {error}"[:500]}
            continue
        ready[provider.name] = timing.Contestant(prepared.call, functools.partial(within, provider.scope, prepared.scope))
    del gate
    for name, entry in _times(ready, settings, beside).items():
        results[name] |= entry
    return results, ready


def _times(ready: dict[str, timing.Contestant], settings: Settings, beside: Callable[[], object]) -> dict[str, dict[str, Any]]:
    options: dict[str, Any] = {"seconds": settings.seconds, "min_rounds": settings.min_rounds, "seed": settings.seed}
    samples, calls = timing.interleave(ready, **options, beside=beside)
    base = samples[providers.BASELINE]
    entries = {
        name: asdict(timing.summarize(own, base, calls[name])) | {"samples_s": _short(own)} for name, own in samples.items()
    }
    if settings.cold_rounds:
        flush = timing.CacheFlush(settings.device)
        options |= {"seconds": 0, "min_rounds": settings.cold_rounds}
        cold, _ = timing.interleave(ready, **options, before=flush)
        for name, own in cold.items():
            entries[name]["cold"] = asdict(timing.summarize(own, cold[providers.BASELINE])) | {"samples_s": _short(own)}
    if settings.device != "cpu":
        for name, entry in _kernel_times(ready, settings).items():
            entries[name]["kernel"] = entry
    return entries


def _kernel_times(ready: dict[str, timing.Contestant], settings: Settings) -> dict[str, dict[str, Any]]:
    """By the device's clock, from CUDA graphs: what the kernels take when nothing waits for the host."""
    from .gpu_acceptance.timing import captured, event_times

    replays, notes = {}, {}
    for name, contestant in ready.items():
        try:
            with contestant.scope():
                replays[name] = captured(contestant.step)
        except RuntimeError as error:
            notes[name] = {"unsupported": f"not captured: {str(error).splitlines()[0][:200]}"}
    if providers.BASELINE not in replays:
        return notes
    return notes | event_times(replays, providers.BASELINE, settings.seconds, settings.min_rounds)


def _peaks(
    case: Case, ready: dict[str, timing.Contestant], contestants: Sequence[providers.Provider], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Only of what keeps things for backward: inference holds its output and little else."""
    if not settings.memory or case.mode not in ("training", "forward"):
        return {}
    return {p.name: _peak(p, ready[p.name], case, settings) for p in contestants if p.name in ready}


def _peak(provider: providers.Provider, contestant: timing.Contestant, case: Case, settings: Settings) -> dict[str, Any]:
    if note := memory.unsupported(settings.device) or provider.own_memory:
        return {"peak_bytes": None, "peak_note": note}
    if settings.device != "cpu":  # torch counts a GPU's memory itself
        gc.collect()
        with contestant.scope():
            return {"peak_bytes": memory.peak(contestant.step, settings.device)}
    try:
        return {"peak_bytes": memory.in_fresh_process(_peak_on_cpu, provider.name, case, settings)}
    except BrokenProcessPool as error:  # out of memory, as likely as not: the times stand
        return {"peak_bytes": None, "peak_note": str(error)}


def _peak_on_cpu(name: str, case: Case, settings: Settings) -> int:
    """In a process that has nothing ready."""
    torch.set_num_threads(settings.threads)
    provider = providers.make(name)
    with provider.scope():
        return memory.peak(provider.prepare(make_problem(case, settings.seed)).call)


def _short(samples: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in samples]
