"""A stage's side of a run: it measures rows one after another, and its file holds every row that is finished.

A row is a JSON object with a ``key`` that is unique in its stage. Before a row begins the file says so, which tells whoever
watches what was going on when the process died or hung. A process whose GPU reported a fault cannot go on: it ends with
:data:`FAULT`, and another one continues behind the row that did it.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Grows when a key of the files changes its meaning or goes away.
SCHEMA = 2

#: Exit status of a stage that must be continued in another process.
FAULT = 70

#: The devices a run may be asked for; the second stands for a dry run without a GPU, in Triton's interpreter.
DEVICES = ("cuda", "cpu-interpreter")

Row = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """All or nothing: a reader, or a run that is cut here, never sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def one_line(text: str) -> str:
    """An error's text, fit for a list or a table."""
    return " ".join(text.split()).replace("|", "/")[:300]


def describe_error(error: BaseException) -> str:
    """The error and where it came from, short enough for a table of them."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return text[:2000] + where


@dataclass
class Stage:
    """One stage's run in this process. ``deadline`` is on the clock of :func:`time.monotonic`."""

    name: str
    directory: Path
    device: str  # one of DEVICES
    deadline: float
    conditions: dict[str, Any] = field(default_factory=dict)  # of the whole run: machine, versions, commit
    built: bool = False  # whether the CUDA kernels are to be loaded as they are, not built
    content: dict[str, Any] = field(init=False)
    _done: dict[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        fresh = {"schema": SCHEMA, "stage": self.name, "status": "running", "reason": None, "seconds": 0.0}
        fresh |= {"conditions": self.conditions, "facts": {}, "rows": [], "skipped": []}
        self.content = read_json(self.path) or fresh
        # What an earlier process had no time for, or did not see any more, is open again.
        self.content |= {"status": "running", "reason": None, "skipped": []}
        self._done = {row["key"]: row for row in self.content["rows"]}
        self._begin = time.monotonic() - self.content["seconds"]
        self._blocked = self.blocked()
        self.save()

    @property
    def path(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def dry(self) -> bool:
        """Whether this run only shows that the program works: tiny sizes, no GPU."""
        return self.device != "cuda"

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu" if self.dry else "cuda:0")

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def save(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self._begin, 3)
        write_json(self.path, self.content)

    def other(self, name: str) -> dict[str, Any] | None:
        """What another stage has written, if it has."""
        return read_json(self.directory / f"{name}.json")

    def fact(self, name: str, value: Any) -> None:
        """Something about the whole stage."""
        self.content["facts"][name] = value
        self.save()

    def blocked(self) -> set[str]:
        """Schedules that broke the GPU's context twice so far, in any stage: more of them would only cost time."""
        files = [self.content, *filter(None, map(read_json, self.directory.glob("*.json")))]
        faults = {
            (content["stage"], row["key"], row.get("schedule")) for content in files for row in content["rows"] if "fault" in row
        }
        schedules = [schedule for _, _, schedule in faults if schedule is not None]
        return {schedule for schedule in schedules if schedules.count(schedule) >= 2}

    def row(self, key: str, measure: Callable[[], Row], schedule: str | None = None) -> Row | None:
        """Measure one row, unless it is there from an earlier process, time is up, or its schedule is blocked. An exception
        becomes the row's "error"."""
        if key in self._done:
            return self._done[key]
        if self.seconds_left <= 0:
            self.content["skipped"].append(key)
            return None
        if schedule in self._blocked:
            return self._add({"key": key, "schedule": schedule, "unsupported": f"{schedule} faulted twice and is left out"})
        self.content["running"] = {"key": key, "schedule": schedule}
        self.save()
        begin = time.monotonic()
        try:
            measured = measure()
            fault = self.fault()
        except Exception as error:
            measured, fault = {"error": describe_error(error)}, self.fault()
        row = {"key": key} | ({"schedule": schedule} if schedule else {}) | measured
        row["seconds"] = round(time.monotonic() - begin, 3)
        if fault is not None:
            row |= {"error": row.get("error") or fault, "fault": fault}
        self._add(row)
        if fault is not None:
            os._exit(FAULT)  # an orderly exit would call into the driver, which can hang now
        return row

    def _add(self, row: Row) -> Row:
        self._done[row["key"]] = row
        self.content["rows"].append(row)
        self.content.pop("running", None)
        self.save()
        return row

    def run(self, function: Callable[[Stage], None]) -> None:
        """Run the stage's function and say how it ended."""
        try:
            function(self)
        except Exception as error:
            self.content |= {"status": "failed", "reason": describe_error(error)}
        else:
            skipped = len(self.content["skipped"])
            self.content["status"] = "cut" if skipped else "complete"
            self.content["reason"] = f"out of time: {skipped} rows were left out" if skipped else None
        self.save()

    def fault(self) -> str | None:
        """What the GPU has to report: errors of kernels show when the host next waits, and stay."""
        if self.dry:
            return None
        import torch  # late, as above: who only conducts or reports does not wait for it

        if not torch.cuda.is_initialized():
            return None
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return describe_error(error)
        return None
