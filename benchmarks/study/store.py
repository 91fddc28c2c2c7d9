"""Result files: one per part, written after every unit, so that a study can stop anywhere and go on later."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnnkernels import info

from .. import machine

#: Grows when a key of a result file changes its meaning or goes away.
SCHEMA = 1


@dataclass(frozen=True)
class Part:
    """A file's worth of measurements.

    ``units`` are named calls that return JSON-serialisable values; the names, in order, say what a complete file has.
    """

    name: str
    units: dict[str, Callable[[], Any]]
    settings: dict[str, Any]  # whatever changes a unit's value: a file with other settings is not continued
    extent: dict[str, Any]  # what the units range over
    threads: int
    timed: bool = False  # whether other work on the machine would falsify it
    objection: str | None = None  # why it cannot be measured here


class Stale(Exception):
    """A result file was made with other settings."""


def path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.json"


def read(folder: Path, name: str) -> dict[str, Any] | None:
    file = path(folder, name)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def read_or_missing(part: Part, folder: Path) -> dict[str, Any]:
    """The part's result; one that is not complete has an "objection" that says so."""
    result = read(folder, part.name) or _header(part)
    if "objection" not in result and (missing := [name for name in part.units if name not in result["units"]]):
        result["objection"] = f"{len(missing)} of {len(part.units)} units are yet to be measured"
    return result


def complete(part: Part, folder: Path, deadline: float = float("inf"), say: Callable[[str], None] = print) -> bool:
    """Measure what the part's file lacks, until ``deadline`` on the monotonic clock -> whether nothing is left.

    Raises:
        Stale: if the file's settings are others.
    """
    result = read(folder, part.name)
    if result is None:
        result = _header(part)
    elif result["settings"] != part.settings or result["schema"] != SCHEMA:
        raise Stale(f"{path(folder, part.name)} was measured with other settings: move it away to measure again")
    if part.objection is not None:
        result["objection"] = part.objection
        _write(result, path(folder, part.name))
        say(f"{part.name}: not measured: {part.objection}")
        return True
    result.pop("objection", None)
    result["extent"] = part.extent
    missing = [name for name in part.units if name not in result["units"]]
    before = torch.get_num_threads()
    torch.set_num_threads(part.threads)
    try:
        for name in missing:
            if time.monotonic() >= deadline:
                return False
            begin = time.monotonic()
            value = part.units[name]()
            _add(result, name, value, part.units)
            _write(result, path(folder, part.name))
            say(f"{part.name}: {name}: {time.monotonic() - begin:.1f} s")
    finally:
        torch.set_num_threads(before)
    return True


def _header(part: Part) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "part": part.name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commits": [],
        "machine": machine.describe(),
        "versions": info.collect()["versions"],
        "settings": part.settings,
        "extent": part.extent,
        "threads": part.threads,
        "highest_load_average": 0.0,
        "units": {},
    }


def _add(result: dict[str, Any], name: str, value: Any, order: Iterable[str]) -> None:
    commit = machine.commit()
    if commit not in result["commits"]:
        result["commits"].append(commit)
    result["highest_load_average"] = max(result["highest_load_average"], machine.load_average() or 0.0)
    units = result["units"] | {name: value}
    result["units"] = {known: units[known] for known in order if known in units}


def _write(result: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(result, separators=(",", ":")).replace('"units":{', '"units":{\n') + "\n", encoding="utf-8")
    os.replace(unfinished, file)
