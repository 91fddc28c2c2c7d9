"""Stage 9: what the profiler says of the worst ratios, and what the sanitizer finds on tiny layers, where they are installed.

Both run :func:`exercise` in a process of its own: ``python -m benchmarks.gpu_acceptance exercise SPECIFICATION``.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..cases import Case
from . import layers
from .machine import find_tool
from .schedules import BACKENDS, Choice, best_of_each, cuda_missing, fitting, gpu, only, planned, pretend_gpu, switched
from .speed import BASELINE, PLANS
from .stage import Row, Stage

_ROOT = Path(__file__).resolve().parent.parent.parent

_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis", "InstructionStats")

#: Tools of compute-sanitizer: memory accesses, races in shared memory, barriers.
_CHECKS = ("memcheck", "racecheck", "synccheck")

#: Steps that are profiled: the profiler repeats a kernel for every group of counters.
_STEPS = 32

#: One tool's run, in seconds.
_PATIENCE = 45


#: The kernels that are profiled, of both backends, but not those that arrange weights for them.
_KERNELS = "regex:^(?!pack_).*(forward|backward).*kernel$"


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    sanitizer, profiler = find_tool("compute-sanitizer"), find_tool("ncu")
    # Accesses first; races within one program, which are the compiler's to avoid, last.
    stage.row(_CHECKS[0], functools.partial(_sanitize, stage, sanitizer, _CHECKS[0]))
    for rank, (precision, case, choice) in worst(stage.other("speed"), stage):
        measure = functools.partial(_profile, stage, profiler, precision, case, choice)
        stage.row(f"ncu, worst ratio {rank}: {case}, {precision}: {choice}", measure)
    for check in () if stage.dry else _CHECKS[1:]:
        stage.row(check, functools.partial(_sanitize, stage, sanitizer, check))


def worst(speed: dict[str, Any] | None, stage: Stage) -> list[tuple[int, tuple[str, Case, Choice]]]:
    """Rank and case of the three lowest ratios to torch.nn of the first backend that was timed, with what its plan chose."""
    rows = (speed or {"rows": []})["rows"]
    timed = {backend: list(_ratios(rows, plan)) for backend, plan in PLANS.items()}
    backend = next((backend for backend, ratios in timed.items() if ratios), BACKENDS[0])
    found = []
    for rank, (_, _, row) in enumerate(sorted(timed[backend], key=lambda ratio: ratio[:2])[:3], start=1):
        case = Case(**row["case"])
        tensor = torch.empty(1, device=stage.torch_device)
        for choice in dict.fromkeys(planned(case, row["precision"], tensor, backend).values()):
            found.append((rank, (row["precision"], case, choice)))
    return found


def _ratios(rows: list[Row], plan: str) -> Iterator[tuple[float, str, Row]]:
    for row in rows:
        entry = row.get("results", {}).get(plan, {})
        times = entry.get("kernel") or entry.get("wall")
        if times is not None and BASELINE in row["results"]:
            yield times["speedup"], row["key"], row


def _specification(device: str, precision: str, case: Case, choice: Choice) -> dict[str, Any]:
    return {"device": device, "precision": precision, "case": case.as_dict(), "choice": choice.as_dict()}


def _sanitize(stage: Stage, tool: str | None, check: str) -> Row:
    tensor = torch.empty(1, device=stage.torch_device)
    specifications = []
    for cell in ("gru",) if stage.dry else ("lstm", "gru"):
        case = Case(cell, "training", 3, 2, 5, 16 if stage.dry else 40, dtype="bfloat16", packed=not stage.dry)
        choices = best_of_each(fitting(case, "bfloat16", gpu(tensor)))
        specifications += [_specification(stage.device, "bfloat16", case, choice) for choice in choices.values()]
    command = [sys.executable, "-m", "benchmarks.gpu_acceptance", "exercise", json.dumps(specifications)]
    if tool is None:
        if stage.dry:
            exercise(specifications)
        return {"unsupported": "compute-sanitizer is not installed", "layers": len(specifications)}
    # torch's own allocator would hide accesses beyond a tensor.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, output = _call([tool, "--tool", check, "--error-exitcode", "99", *command], stage, variables)
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    row: Row = {"exit_status": code, "summary": summary, "clean": code == 0, "layers": len(specifications)}
    return row if code == 0 else {**row, "error": f"{check} ended with {code}", "output": output[-6000:]}


def _profile(stage: Stage, tool: str | None, precision: str, case: Case, choice: Choice) -> Row:
    row: Row = {"case": case.as_dict(), "precision": precision, "choice": choice.as_dict()}
    if tool is None:
        return {**row, "unsupported": "ncu is not installed"}
    short = Case(**{**case.as_dict(), "T": _STEPS, "num_layers": 1})
    specification = json.dumps([_specification(stage.device, precision, short, choice)])
    # The clocks stay as they are: the machine may not be ours to set.
    command = [tool, "--clock-control", "none", "--kernel-name", _KERNELS]
    command += ["--launch-count", "2", "--csv", "--page", "details"]
    for section in _SECTIONS:
        command += ["--section", section]
    command += [sys.executable, "-m", "benchmarks.gpu_acceptance", "exercise", specification]
    code, output = _call(command, stage)
    # The kernels' own lines are CSV; the profiler's remarks begin with ==.
    table = [line for line in output.splitlines() if line.startswith('"')]
    return {**row, "exit_status": code, "table": table[:200]} | ({} if table else {"error": output[-3000:]})


def _call(command: list[str], stage: Stage, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a tool; one that takes too long is stopped and what it wrote so far is kept."""
    patience = max(1.0, min(_PATIENCE, stage.seconds_left))
    variables = os.environ | (environment or {})
    done = subprocess.Popen(
        command, cwd=_ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=os.setpgrp
    )
    try:
        output, _ = done.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, 9)  # the tool and what it runs
        output, _ = done.communicate()
        return 124, f"{output}\nstopped after {patience:.0f} s"
    return done.returncode, output


def exercise(specifications: list[dict[str, Any]]) -> None:
    """Run each case once, forward and backward, as chosen."""
    for specification in specifications:
        case, choice = Case(**specification["case"]), Choice.of(specification["choice"])
        precision, dry = specification["precision"], specification["device"] != "cuda"
        if dry:
            pretend_gpu()
        else:
            cuda_missing()  # loads their library
        device = torch.device("cpu" if dry else "cuda:0")
        with switched(precision), only(choice):
            layers.forward_pass(case, precision, device, choice.backend)()
            if case.mode == "training":
                layers.backward_pass(case, precision, device, choice.backend)()
        if not dry:
            torch.cuda.synchronize()
        print(f"ran {case}, {precision}: {choice}")
