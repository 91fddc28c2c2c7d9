"""Result files: reading those of every schema so far, writing while a run goes on, and ratios between providers.

==========  =================================================================================================================
schema 1    the times of each case and provider as median, p20, p80 and the same of the speed-up over the baseline
schema 2    and every round's seconds ("samples_s"), operations and the sequences' steps of a case, what torch.nn ran, memory,
            the wall, providers that were absent with their reason, environment, clocks and switches
==========  =================================================================================================================
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import flops
from .cases import Case

#: Grows when a key of the result file changes its meaning or goes away.
SCHEMA = 2

Result = dict[str, Any]
Row = dict[str, Any]


class UnreadableResult(ValueError):
    """The file is not a result of ``python -m benchmarks run``, or of a later version."""


def load(path: Path) -> Result:
    """A result of any schema, as the newest: what an older one does not have is None or empty."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or not {"schema", "cases", "settings", "baseline"} <= result.keys():
        raise UnreadableResult(f"{path} is not a result file of python -m benchmarks run")
    if result["schema"] > SCHEMA:
        raise UnreadableResult(f"{path} has schema {result['schema']}; this version reads up to {SCHEMA}")
    return _from_first(result) if result["schema"] == 1 else result


def save(result: Result, path: Path) -> None:
    """Written aside first: a run that is cut leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def _from_first(result: Result) -> Result:
    seed = result["settings"]["seed"]
    rows = []
    for row in result["cases"]:
        case = Case(**row["case"])
        steps = sum(case.lengths(seed))
        unknown = {"wall_flops": None, "baseline_kernel": None}
        rows.append({**row, **unknown, "rows": steps, "operations": flops.operations(case, steps)})
    missing = {"missing": "the file is older than this measurement"}
    return {**result, "device": "cpu", "absent": {}, "wall": missing, "cases": rows}


# --- looking things up -----------------------------------------------------------------------------------------------------


def providers(result: Result) -> list[str]:
    """Names, the baseline first, of everyone who has an entry."""
    return list(dict.fromkeys([result["baseline"], *(name for row in result["cases"] for name in row["results"])]))


def timed(result: Result, *names: str) -> Iterator[tuple[Case, Row]]:
    """The cases in which all of the named providers were timed."""
    for row in result["cases"]:
        if all("median_s" in row["results"].get(name, {}) for name in names):
            yield Case(**row["case"]), row


def refused(result: Result, name: str) -> list[str]:
    """The cases whose results were too wrong to be timed."""
    return [str(Case(**row["case"])) for row in result["cases"] if "error" in row["results"].get(name, {})]


def times_faster(row: Row, name: str, other: str) -> float:
    """How many times less time ``name`` takes than ``other``: the median of the rounds' ratios, or where rounds were not kept
    the ratio of the medians."""
    own, others = row["results"][name], row["results"][other]
    if "samples_s" in own and "samples_s" in others:
        return statistics.median([b / a for a, b in zip(own["samples_s"], others["samples_s"], strict=True)])
    if "speedup" in own and others.get("speedup") == 1:
        return own["speedup"]
    return others["median_s"] / own["median_s"]
