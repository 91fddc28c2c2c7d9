"""How far one case is from what the machine can do, and why: ``python -m benchmarks explain --T 50 --B 64 --H 512``.

Says who computes it and how it is divided among threads, what it takes in operations and bytes, and holds the time against the
limits of :mod:`.wall`. The largest of them is the one that binds; what is above it is this package's to win.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rnnkernels import backends, info

from . import flops, wall
from .cases import Case
from .providers import BASELINE, OURS, modules
from .results import Result, Row

_WORDS = {
    "products": "multiply-adds at the wall's rate",
    "weights": "reading the recurrent weights anew at every step, from the cache they fit in",
    "steps": "steps that wait for each other, their products as good as free",
}


def render(result: Result, row: Row, name: str = OURS) -> str:
    """What a measured row says, in lines."""
    case = Case(**row["case"])
    threads = result["settings"]["threads"]
    lines = [f"{case}", f"on {result['machine']['name']}, {threads} thread{'s' * (threads > 1)}", ""]
    lines.append(f"{'computed by':<14}{_computed_by(case, result['device'])}")
    lines += [f"{'divided':<14}{_division(case, threads)}"] * (result["device"] == "cpu")
    lines += [f"{'torch.nn ran':<14}{row['baseline_kernel'] or 'not recorded'}", "", *_times(row), ""]
    lines += [*_work(case, row), ""]
    entry = row["results"].get(name, {})
    bounds = wall.bounds(case, row, result["wall"], threads)
    if "median_s" not in entry:
        return "\n".join([*lines, f"{name}: not timed: {entry.get('error') or entry.get('unsupported') or 'not measured'}"])
    if not bounds:
        return "\n".join([*lines, wall.describe(result["wall"])])
    lines.append("no faster than, whatever computes it")
    lines += [f"  {bound:<10}{_ms(seconds):>12}  {_WORDS[bound]}" for bound, seconds in bounds.items()]
    return "\n".join([*lines, "", *_verdict(case, row, name, bounds, threads, result["wall"])])


def binding(bounds: dict[str, float]) -> str:
    """The limit that binds: the largest."""
    return max(bounds, key=bounds.__getitem__)


def _verdict(case: Case, row: Row, name: str, bounds: dict[str, float], threads: int, limits: dict[str, Any]) -> list[str]:
    seconds, limit = row["results"][name]["median_s"], binding(bounds)
    reached = wall.share(row, name)
    lines = [
        f"{name} takes {_ms(seconds)}: {seconds / bounds[limit]:.2f} times the limit that binds, {limit}; "
        f"{100 * (reached or 0):.0f} % of the multiply-add wall ({row['wall_flops'] * 1e-9:.0f} GFLOP/s)."
    ]
    if limits["handover_s"] and _by_units(case, threads):
        waits = case.T * (2 if case.mode == "training" else 1) * limits["handover_s"]
        lines.append(f"Its steps are shared by threads, which wait for each other at each: {_ms(waits)} at least.")
    return lines


def parts(case: Case) -> list[Case]:
    """What to measure besides, to tell where a case's time goes: the two passes of a training step."""
    return [replace(case, mode=mode) for mode in ("forward", "backward")] if case.mode == "training" else []


def render_parts(rows: Sequence[Row], name: str = OURS) -> str:
    """The measured parts, each against the wall."""
    lines = []
    for row in rows:
        entry = row["results"].get(name, {})
        if "median_s" in entry:
            reached = wall.share(row, name)
            share = "" if reached is None else f", {100 * reached:.0f} % of the wall"
            lines.append(f"  {row['case']['mode']:<10}{_ms(entry['median_s']):>12}{share}")
    return "\n".join([f"the passes of {name}", *lines]) if lines else ""


def render_scaling(row: Row, single: Row, threads: int, name: str = OURS) -> str:
    """What threads bring, from the same case on one."""
    many, one = (found["results"].get(name, {}).get("median_s") for found in (row, single))
    if many is None or one is None:
        return ""
    return f"On one thread {name} takes {_ms(one)}: {threads} threads are {one / many:.2f} times as fast."


def _computed_by(case: Case, device: str) -> str:
    if case.mode == "streaming":
        return f"a stream: weights packed once, {_isa()}"
    explanation = backends.explain_request(modules.request(case, device), case.B)
    chosen = explanation.chosen or "nobody"
    details = {"cpu": _isa()}.get(chosen, explanation.schedules)
    return f"{chosen}: {backends.get(chosen).description}" + (f", {details}" if details else "")


def _isa() -> str:
    native = info.collect()["native"]
    return f"instruction set {native['isa']}" if native["isa"] else "instruction set unknown"


def _division(case: Case, threads: int) -> str:
    division = _divide(case, threads)
    if division is None:
        return "unknown: rnnkernels._C does not load"
    if threads == 1 or case.mode == "streaming":
        return "one thread" if threads == 1 else "a step is divided by units where it is worth it"
    if division["by_units"]:
        return f"{threads} threads share the units of every step and wait for each other at each"
    slices = division["slices"]
    directions = 2 if case.bidirectional else 1
    busy = min(threads, slices * directions)
    parts = f"{slices} slice{'s' * (slices > 1)} of the batch" + (" in each direction" if directions > 1 else "")
    return f"{parts}: {busy} of {threads} threads busy, without waiting for each other"


def _by_units(case: Case, threads: int) -> bool:
    division = _divide(case, threads)
    return bool(division and division["by_units"])


def _divide(case: Case, threads: int) -> dict[str, Any] | None:
    try:
        native = importlib.import_module("rnnkernels._C")
    except ImportError:
        return None
    return native.cpu_division(
        cell=case.cell,
        steps=case.T,
        batch=case.B,
        input_size=case.I,
        hidden_size=case.H,
        state_size=case.proj_size or case.H,
        directions=2 if case.bidirectional else 1,
        has_projection=bool(case.proj_size),
        threads=threads,
    )


def _times(row: Row) -> list[str]:
    base = row["results"][BASELINE]["median_s"]
    lines = []
    for name, entry in row["results"].items():
        if "median_s" not in entry:
            lines.append(f"{name:<18}not timed: {entry.get('error') or entry.get('unsupported')}")
            continue
        spread = f"({_ms(entry['p20_s'])} to {_ms(entry['p80_s'])})"
        reached = wall.share(row, name)
        share = "" if reached is None else f", {100 * reached:.0f} % of the wall"
        lines.append(f"{name:<18}{_ms(entry['median_s']):>12} {spread}, {base / entry['median_s']:.2f} x torch.nn{share}")
    return lines


def _work(case: Case, row: Row) -> list[str]:
    recurrent = flops.recurrent_weights(case) * case.num_layers * (2 if case.bidirectional else 1)
    share = recurrent / flops.weights(case)
    size = {"float64": 8, "float32": 4}.get(case.dtype, 2)
    per_step = row["operations"] / case.T
    return [
        f"{row['operations'] * 1e-9:.3g} GFLOP in matrix products, {100 * share:.0f} % of them one step after the other; "
        f"{per_step * 1e-6:.3g} MFLOP a step",
        f"{flops.weights(case) * size / 2**20:.3g} MiB of weights, {recurrent * size / 2**20:.3g} MiB of them needed at every "
        f"step; {row['operations'] / (flops.weights(case) * size * case.T):.3g} operations a byte if they are read once a step",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
