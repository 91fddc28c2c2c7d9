"""Runs the stages one after another, each in a child process, and sees to it that the whole ends in time.

A child imports what it needs while the stage before it is measuring, and waits to be told its deadline. One that reports a fault
of the GPU, dies or hangs is replaced by another that goes on behind the row that did it; a stage that fails is recorded and the
next one begins.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .stage import FAULT, SCHEMA, one_line, read_json, write_json

_ROOT = Path(__file__).resolve().parent.parent.parent

#: Stages in the order of their value, and the seconds of a ten-minute run that each may take. What one leaves, the others get.
SHARES = {
    "machine": 10,
    "build": 40,
    "parity": 105,
    "repeatability": 50,
    "speed": 190,
    "tuning": 80,
    "mechanisms": 40,
    "peers": 10,
    "profiles": 70,
}

#: Stages that the others need, and the seconds that they may take beyond their share; the first one's process imports meanwhile.
PATIENCE = {"machine": 60, "build": 240}

#: Stages that the next one's process must not be started beside: it would load what they are about to replace.
ALONE = ("build",)

#: The stage that runs beside the others, from the end of the first until the end.
BACKGROUND = "compiling"

#: A row that takes longer, in seconds, hangs.
ROW_LIMIT = 90.0

#: How far beyond its deadline a stage may finish its last row, in seconds.
GRACE = 10.0

#: Processes that one stage may use up.
ATTEMPTS = 8


@dataclass(frozen=True)
class Plan:
    """What to run."""

    directory: Path
    device: str
    stages: Sequence[str]
    minutes: float
    commit: str | None = None
    row_limit: float = ROW_LIMIT
    built: bool = False  # whether the CUDA kernels are there already


def conduct(plan: Plan) -> bool:
    """Run it all; whether every stage came to its end, cut or not."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    for name in (*plan.stages, BACKGROUND):  # results of an earlier run in the same place are not this one's
        for ending in ("json", "log"):
            (plan.directory / f"{name}.{ending}").unlink(missing_ok=True)
    end = time.monotonic() + plan.minutes * 60
    children: dict[str, Child] = {}
    background: Child | None = None
    fine = True
    try:
        for i, name in enumerate(plan.stages):
            here = children.pop(name, None) or Child(plan, name)
            if i + 1 < len(plan.stages) and name not in ALONE:  # it imports while this one measures
                children[plan.stages[i + 1]] = Child(plan, plan.stages[i + 1])
            left = end - time.monotonic()
            share = left * SHARES[name] / sum(SHARES[later] for later in plan.stages[i:])
            budget = min(left, max(share, PATIENCE.get(name, 0)))
            status = _run(plan, name, here, time.monotonic() + budget)
            print(f"{name:<14} {status['status']:<9} {status['seconds']:6.1f} s  {one_line(status['reason'] or '')}", flush=True)
            fine &= status["status"] in ("complete", "cut")
            if name == "machine" and plan.device == "cuda" and status["status"] == "complete" and i + 1 < len(plan.stages):
                background = Child(plan, BACKGROUND)
                background.go(end)
    finally:
        for child in (*children.values(), *([background] if background else [])):
            child.stop()
    return fine


def command(plan: Plan, name: str) -> list[str]:
    """What runs one stage."""
    line = [sys.executable, "-m", "benchmarks.gpu_acceptance", "stage", name]
    line += ["--out", str(plan.directory.resolve()), "--device", plan.device]
    return [*line, *(["--commit", plan.commit] if plan.commit else []), *(["--built"] if plan.built else [])]


class Child:
    """A process that runs one stage once it is told to go."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.name = name
        self.path = plan.directory / f"{name}.json"
        self.log_path = plan.directory / f"{name}.log"
        self.log: IO[bytes] = self.log_path.open("ab")
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        # Kernels are interpreted or compiled as the process begins: the variable is read when Triton is imported.
        environment["TRITON_INTERPRET"] = "1" if plan.device != "cuda" else "0"
        self.process = subprocess.Popen(
            command(plan, name),
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # so that it can be stopped with whatever it starts
        )

    def go(self, deadline: float) -> None:
        """Let it begin; ``deadline`` is on this process's monotonic clock, which is the machine's."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"deadline": deadline}).encode() + b"\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died while importing; its exit status and log tell

    def stop(self) -> None:
        """End it and whatever it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()
        if self.log_path.exists() and self.log_path.stat().st_size == 0:
            self.log_path.unlink()

    def last_words(self) -> str:
        """The end of what the process printed."""
        return self.log_path.read_text(errors="replace").rstrip()[-800:] if self.log_path.exists() else ""


def _run(plan: Plan, name: str, child: Child, deadline: float) -> dict[str, Any]:
    """Run a stage to its end, in as many processes as it takes -> its file's content."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            child.go(deadline)
            reason = _watch(child, deadline + GRACE, max(plan.row_limit, PATIENCE.get(name, 0)))
        except BaseException:  # the run is ended from outside: nothing may stay behind
            child.stop()
            _write_ended(child, "cut", "the run was ended from outside")
            raise
        child.stop()
        code = child.process.returncode
        if code == 0 and reason is None and (content := read_json(child.path)) is not None:
            return content
        if code == FAULT:
            reason = "a kernel broke the GPU's context"
        reason = reason or f"the process ended with {code}: {child.last_words()}"
        out_of_time = time.monotonic() >= deadline
        content, lost = _write_ended(child, "cut" if out_of_time else "failed", reason, fault=not out_of_time)
        # One that died between rows would die there again.
        if out_of_time or not (lost or code == FAULT) or attempt == ATTEMPTS:
            break
        child = Child(plan, name)
    return content


def _write_ended(child: Child, status: str, reason: str, fault: bool = False) -> tuple[dict[str, Any], bool]:
    """Bring the file of a stage whose process is gone to an end -> its content, and whether a row was being measured: that row
    is at fault, or else left out."""
    empty = {"schema": SCHEMA, "stage": child.name, "seconds": 0.0, "conditions": {}, "facts": {}, "rows": [], "skipped": []}
    content = read_json(child.path) or empty
    running = content.pop("running", None)
    if running is not None and fault:
        content["rows"].append({**running, "error": reason, "fault": reason})
    elif running is not None:
        content["skipped"].append(running["key"])
    content |= {"status": status, "reason": reason}
    write_json(child.path, content)
    return content, running is not None


def _watch(child: Child, until: float, row_limit: float) -> str | None:
    """Wait for the child; stop it, and say why, if it does not end in time or a row does not."""
    begin = time.time()
    while child.process.poll() is None:
        time.sleep(0.05)
        last = max(begin, child.path.stat().st_mtime if child.path.exists() else begin)
        if time.monotonic() > until:
            child.stop()
            return "stopped at the end of the stage's time"
        if time.time() - last > row_limit:
            child.stop()
            return f"stopped: nothing was finished in {row_limit:.0f} s"
    return None
