"""A run's tuning -> the tables that plans read, one per GPU generation: ``csrc/cuda/measurements.inc``, which is compiled in, and
``rnnkernels/backends/triton/measured/``.

A table replaces what was there for the same compute capability and leaves the others' alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .stage import Row, read_json

_ROOT = Path(__file__).resolve().parent.parent.parent

CUDA = _ROOT / "csrc" / "cuda" / "measurements.inc"
TRITON = _ROOT / "rnnkernels" / "backends" / "triton" / "measured"

_HEAD = "// Entries of Measured (plan.h): the fastest schedules as measured, by python -m benchmarks.gpu_acceptance tables DIR.\n"
_NONE = "// None yet: estimates decide.\n"

_PRODUCTS = {"bfloat16": "kBFloat16", "float16": "kFloat16", "tf32": "kTf32", "ieee": "kTf32x3"}
_SCHEDULES = {"one CTA": "kOneCta", "cluster": "kCluster", "grid": "kGrid", "stepwise": "kStepwise"}


class NoMeasurements(Exception):
    """A run has nothing that tables could be made of, in words."""


def write(directory: Path, cuda: Path = CUDA, triton: Path = TRITON) -> list[Path]:
    """Write both tables from a run's files -> those that had measurements."""
    tuning, machine = (read_json(directory / f"{name}.json") for name in ("tuning", "machine"))
    if tuning is None or machine is None:
        raise NoMeasurements(f"{directory} has no tuning.json and machine.json: run the stages machine and tuning")
    conditions = tuning["conditions"]
    if conditions["dry_run"]:
        raise NoMeasurements(f"{directory} is a dry run: its times mean nothing")
    hardware = next(row for row in machine["rows"] if row["key"] == "hardware")
    capability = 10 * hardware["major"] + hardware["minor"]
    found = [row for row in tuning["rows"] if "fastest" in row]
    written = []
    if rows := [row for row in found if row["backend"] == "cuda"]:
        cuda.write_text(cuda_table(rows, capability, conditions, cuda.read_text() if cuda.exists() else ""), encoding="utf-8")
        written.append(cuda)
    if rows := [row for row in found if row["backend"] == "triton"]:
        path = triton / f"sm_{capability}.json"
        triton.mkdir(parents=True, exist_ok=True)
        path.write_text(triton_table(rows, conditions), encoding="utf-8")
        written.append(path)
    return written


def _measured_on(conditions: dict[str, Any]) -> str:
    return f"{conditions['machine']}, commit {conditions['commit']}, {conditions['date']}"


def cuda_table(rows: list[Row], capability: int, conditions: dict[str, Any], before: str) -> str:
    """The text of measurements.inc: ``before`` with the lines of this compute capability replaced."""
    blocks = {int(block.split()[3].rstrip(",")): block for block in _blocks(before)}
    lines = [_entry(row, capability) for row in rows]
    blocks[capability] = f"// Compute capability {capability}, {_measured_on(conditions)}\n" + "".join(sorted(lines))
    return _HEAD + "".join(block for _, block in sorted(blocks.items()))


def _blocks(text: str) -> list[str]:
    return [match[0] for match in re.finditer(r"^// Compute capability \d+, .*\n(?:\{.*\},\n)+", text, re.MULTILINE)]


def _entry(row: Row, capability: int) -> str:
    case, fastest = row["case"], row["fastest"]
    batch = case["B"] * (2 if case["bidirectional"] else 1)
    tile = f"k{(fastest['tile'] or 'narrow').capitalize()}"
    fields = [
        f"CellName::k{case['cell'].capitalize()}",
        f"ProductName::{_PRODUCTS[row['precision']]}",
        f"Pass::{'kBackward' if row['backward'] else 'kForward'}",
        *map(str, (capability, case["H"], batch)),
        f"Schedule::{_SCHEDULES[fastest['schedule']]}",
        f"TileName::{tile}",
        str(fastest["ctas"] or 1),
    ]
    return "{" + ", ".join(fields) + "},\n"


def triton_table(rows: list[Row], conditions: dict[str, Any]) -> str:
    """The text of a file in ``measured/``: where it was measured, and key -> the fields of a tiling."""
    tilings = {}
    for row in rows:
        name, _, _ = row["key"].removeprefix("triton ").rpartition(", ")
        tilings[name] = {field: value for field, value in row["fastest"].items() if field != "backend"}
    head = {name: conditions[name] for name in ("machine", "commit", "date", "triton")}
    return json.dumps({**head, "tilings": dict(sorted(tilings.items()))}, indent=1) + "\n"
