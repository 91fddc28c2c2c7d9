"""A run's mechanisms -> the constants of the CUDA kernels' cost model, ``csrc/cuda/costs.inc``, which their plan is built with.

Most constants are the cost of one mechanism. What a step takes besides is left over between the model and the times of inference
that the stage speed measured, the products outside the recurrence subtracted. A constant whose mechanism was not measured stays.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .stage import Row, read_json

_ROOT = Path(__file__).resolve().parent.parent.parent

COSTS = _ROOT / "csrc" / "cuda" / "costs.inc"

Costs = dict[str, float]
Measured = dict[tuple[Any, ...], float]  # (mechanism, *numbers) -> median

_ENTRY = re.compile(r"^RNN_COST\((\w+), ([0-9.e+]+)\)(.*)$", re.MULTILINE)


class Rule(NamedTuple):
    """How a constant follows from mechanisms, given what was measured of them."""

    mechanisms: tuple[tuple[Any, ...], ...]
    value: Callable[[Measured], float]


_CLOCK = ("clock_rate",)
_CACHE = ("global_rate", 1 << 12)  # KiB: from the second-level cache
_PROCESSORS = ("multiprocessors",)  # of the hardware, not measured

#: Exchanges in clusters of 8: bytes that leave each CTA for the others -> the mechanism.
_EXCHANGES = {vectors * 16 * 7: ("cluster_exchange", 8, vectors, 15) for vectors in (8, 64, 128)}


def _cycles(*mechanism: Any) -> Rule:
    return Rule((_CLOCK, mechanism), lambda m: m[mechanism] * m[_CLOCK])


def _per_cycle(*mechanism: Any) -> Rule:
    return Rule((_CLOCK, mechanism), lambda m: m[mechanism] / m[_CLOCK])


def _as_it_is(*mechanism: Any) -> Rule:
    return Rule((mechanism,), lambda m: m[mechanism])


def _clusters(n: int) -> Rule:
    """What a GPU of 132 multiprocessors would have at once."""
    mechanism = ("resident_clusters", n, 200)
    return Rule((mechanism, _PROCESSORS), lambda m: m[mechanism] * 132 / m[_PROCESSORS])


def _exchange_line(m: Measured) -> tuple[float, float]:
    """Cycles of an exchange as a line over its bytes: slope, intercept."""
    fit = statistics.linear_regression(list(_EXCHANGES), [m[name] * m[_CLOCK] for name in _EXCHANGES.values()])
    return fit.slope, fit.intercept


_OF_EXCHANGES = (_CLOCK, *_EXCHANGES.values())

RULES = {
    "cycles_per_microsecond": _as_it_is(*_CLOCK),
    "product_latency": _cycles("product_latency_bf16"),
    "products_per_cycle": _per_cycle("product_rate_bf16"),
    "shared_bytes_per_cycle": _per_cycle("shared_rate", 256),
    "remote_latency": Rule(_OF_EXCHANGES, lambda m: _exchange_line(m)[1]),
    "remote_bytes_per_cycle": Rule(_OF_EXCHANGES, lambda m: 1 / _exchange_line(m)[0]),
    "hand_over": _cycles("word_latency"),
    "cache_bytes_per_cycle": Rule((_CLOCK, _CACHE, _PROCESSORS), lambda m: m[_CACHE] / m[_CLOCK] / m[_PROCESSORS]),
    "cta_barrier": _cycles("cta_barrier", 256),
    "cell_latency": _cycles("cell_latency_lstm"),
    **{f"clusters_of_{n}": _clusters(n) for n in (2, 4, 8, 16)},
    "stepwise_launches": _as_it_is("library_step", 256, 16),
    "stepwise_bytes_per_microsecond": _as_it_is(*_CACHE),
}


class NothingToFit(Exception):
    """A run has no mechanisms, in words."""


def run(directory: Path, write: bool, path: Path = COSTS) -> str:
    """The constants before and after, and how far the model is from what was measured, as Markdown; ``write`` them, too."""
    files = {name: read_json(directory / f"{name}.json") for name in ("machine", "mechanisms", "speed")}
    mechanisms = files["mechanisms"]
    if mechanisms is None or files["machine"] is None:
        raise NothingToFit(f"{directory} has no mechanisms.json and machine.json: run the stages machine, build and mechanisms")
    before = read_costs(path.read_text(encoding="utf-8"))
    hardware = next(row for row in files["machine"]["rows"] if row["key"] == "hardware")
    found = measured(mechanisms) | {_PROCESSORS: hardware["multi_processor_count"]}
    after, left = fitted(before, found)
    steps = list(measured_steps(files["speed"] or {"rows": []}, hardware))
    if steps and not {"cycles_per_microsecond", "cell_latency"} & set(left):
        after["rest"] = _rest(after, steps)
    else:
        left = [*left, "rest"]
    if write:
        path.write_text(_written(path.read_text(encoding="utf-8"), after, mechanisms["conditions"], left), encoding="utf-8")
    lines = ["| constant | before | after |", "|---|--:|--:|"]
    lines += [f"| {name} | {before[name]:.6g} | {'not measured' if name in left else f'{after[name]:.6g}'} |" for name in before]
    for name, costs in (("before", before), ("after", after)):
        ratios = sorted(step.microseconds / step.estimate(costs) for step in steps)
        if ratios:
            middle = statistics.median(ratios)
            lines.append(f"\nMeasured steps by the model's {name}: median {middle:.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}.")
    return "\n".join(lines) + "\n"


def read_costs(text: str) -> Costs:
    return {name: float(value) for name, value, _ in _ENTRY.findall(text)}


def measured(mechanisms: dict[str, Any]) -> Measured:
    rows = [row for row in mechanisms["rows"] if "mechanism" in row and "median" in row]
    return {(row["mechanism"], *row["numbers"]): row["median"] for row in rows}


def fitted(before: Costs, found: Measured) -> tuple[Costs, list[str]]:
    """The constants that follow from mechanisms, and the names of those that do not."""
    after, left = dict(before), []
    for name in before:
        rule = RULES.get(name)
        if rule is not None and all(mechanism in found for mechanism in rule.mechanisms):
            after[name] = rule.value(found)
        elif name != "rest":
            left.append(name)
    return after, left


# --- steps ---------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A step of a forward pass as measured, and what the model is asked about it."""

    microseconds: float
    asked: dict[str, Any]

    def estimate(self, costs: Costs) -> float:
        from rnnkernels import _C

        return _C.cuda_estimate(**self.asked, costs=costs)


def measured_steps(speed: dict[str, Any], hardware: Row) -> Iterator[Step]:
    """Steps of inference that a persistent schedule of the CUDA kernels computed as planned."""
    device = {
        "compute_capability": 10 * hardware["major"] + hardware["minor"],
        "multiprocessors": hardware["multi_processor_count"],
        "shared_bytes": hardware["shared_memory_per_block_optin"],
        "most_cluster": 16,
    }
    for row in speed["rows"]:
        choice = row.get("plan", {}).get("cuda", {}).get("forward", {})
        alone = row.get("results", {}).get("cuda plan", {}).get("us_per_step_alone")
        if alone is None or row["case"]["mode"] != "inference" or choice["schedule"] not in ("one CTA", "cluster", "grid"):
            continue
        yield Step(alone, {**_layer(row), **device, "tile": choice["tile"], "ctas": choice["ctas"]})


def _layer(row: Row) -> dict[str, Any]:
    case = row["case"]
    sizes = {"hidden": case["H"], "batch": case["B"], "directions": 2 if case["bidirectional"] else 1}
    return {"cell": case["cell"], "dtype": case["dtype"], "tf32": row["precision"] == "tf32", "backward": False, **sizes}


def _rest(costs: Costs, steps: list[Step]) -> float:
    """Cycles that steps take beyond the rest of the model, the median; the model is a line in them."""
    found = []
    for step in steps:
        none, thousand = (step.estimate({**costs, "rest": rest}) for rest in (0.0, 1000.0))
        found.append(1000 * (step.microseconds - none) / (thousand - none))
    return max(0.0, statistics.median(found))


# --- the file ------------------------------------------------------------------------------------------------------------


def _written(text: str, costs: Costs, conditions: dict[str, Any], left: list[str]) -> str:
    where = f"// Measured on {conditions['machine']}, commit {conditions['commit']}, {conditions['date']}"
    where += f", but for {', '.join(left)}.\n" if left else ".\n"

    def entry(match: re.Match[str]) -> str:
        name, _, comment = match.groups()
        return f"RNN_COST({name}, {costs[name]:.6g}){comment}"

    head, entries = text[: text.index("RNN_COST")], text[text.index("RNN_COST") :]
    kept = [line for line in head.splitlines(keepends=True) if not line.startswith(("// Measured on ", "// Estimated from "))]
    return "".join([*kept, where]) + _ENTRY.sub(entry, entries)
