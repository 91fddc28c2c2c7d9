"""Stage 8: what the profiler says of the worst ratios, and what the sanitizer finds on tiny layers, where they are installed.

Both run :func:`exercise` in a process of its own: ``python -m benchmarks.gpu_acceptance exercise SPECIFICATION``.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from rnnkernels.backends.triton.plan import Tiling

from ..cases import Case
from . import layers
from .machine import find_tool
from .schedules import best_of_each, fitting, gpu, one_program_at_a_time, only, planned, switched
from .speed import BASELINE, PLAN
from .stage import Row, Stage

_ROOT = Path(__file__).resolve().parent.parent.parent

_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis", "InstructionStats")

#: Tools of compute-sanitizer: memory accesses, races in shared memory, barriers.
_CHECKS = ("memcheck", "racecheck", "synccheck")

#: Steps that are profiled: the profiler repeats a kernel for every group of counters.
_STEPS = 32

#: One tool's run, in seconds.
_PATIENCE = 45


def run(stage: Stage) -> None:
    sanitizer, profiler = find_tool("compute-sanitizer"), find_tool("ncu")
    # Accesses first; races within one program, which are the compiler's to avoid, last.
    stage.row(_CHECKS[0], functools.partial(_sanitize, stage, sanitizer, _CHECKS[0]))
    for rank, (precision, case, tiling) in enumerate(worst(stage.other("speed"), stage)):
        measure = functools.partial(_profile, stage, profiler, precision, case, tiling)
        stage.row(f"ncu, worst ratio {rank + 1}: {case}, {precision}: {tiling}", measure)
    for check in () if stage.dry else _CHECKS[1:]:
        stage.row(check, functools.partial(_sanitize, stage, sanitizer, check))


def worst(speed: dict[str, Any] | None, stage: Stage) -> list[tuple[str, Case, Tiling]]:
    """The cases with the three lowest ratios of the plan's choice to torch.nn, with what the plan chose."""
    ratios = []
    for row in (speed or {"rows": []})["rows"]:
        entry = row.get("results", {}).get(PLAN, {})
        times = entry.get("kernel") or entry.get("wall")
        if times is not None and BASELINE in row["results"]:
            ratios.append((times["speedup"], row["key"], row))
    found = []
    for _, _, row in sorted(ratios, key=lambda ratio: ratio[:2])[:3]:
        case = Case(**row["case"])
        tensor = torch.empty(1, device=stage.torch_device)
        for tiling in dict.fromkeys(planned(case, row["precision"], tensor).values()):
            found.append((row["precision"], case, tiling))
    return found


def _specification(device: str, precision: str, case: Case, tiling: Tiling) -> dict[str, Any]:
    return {"device": device, "precision": precision, "case": case.as_dict(), "tiling": tiling._asdict()}


def _sanitize(stage: Stage, tool: str | None, check: str) -> Row:
    tensor = torch.empty(1, device=stage.torch_device)
    if stage.dry:
        one_program_at_a_time()
    specifications = []
    for cell, H in (("lstm", 8), ("gru", 8)) if stage.dry else (("lstm", 40), ("gru", 40)):
        case = Case(cell, "training", 3, 2, 5, H, dtype="bfloat16", packed=not stage.dry)
        tilings = best_of_each(fitting(case, "bfloat16", gpu(tensor)))
        specifications += [_specification(stage.device, "bfloat16", case, tiling) for tiling in tilings.values()]
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


def _profile(stage: Stage, tool: str | None, precision: str, case: Case, tiling: Tiling) -> Row:
    row: Row = {"case": case.as_dict(), "precision": precision, "tiling": tiling._asdict()}
    if tool is None:
        return {**row, "unsupported": "ncu is not installed"}
    short = Case(**{**case.as_dict(), "T": _STEPS, "num_layers": 1})
    specification = json.dumps([_specification(stage.device, precision, short, tiling)])
    # The clocks stay as they are: the machine may not be ours to set.
    command = [tool, "--clock-control", "none", "--kernel-name", "regex:^(step_)?(forward|backward)_kernel$"]
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
    """Run each case once, forward and backward, with its tiling."""
    for specification in specifications:
        case, tiling = Case(**specification["case"]), Tiling(**specification["tiling"])
        precision, dry = specification["precision"], specification["device"] != "cuda"
        if dry:
            one_program_at_a_time()
        device = torch.device("cpu" if dry else "cuda:0")
        with switched(precision), only(tiling):
            layers.forward_pass(case, precision, device)()
            if case.mode == "training":
                layers.backward_pass(case, precision, device)()
        if not dry:
            torch.cuda.synchronize()
        print(f"ran {case}, {precision}: {tiling}")
