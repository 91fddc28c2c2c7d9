"""Stage 2: the CUDA kernels, compiled from the checkout for the GPU that is here, and the program that measures their mechanisms.

Everything is compiled anew, on all cores, unless the run was told that it is ``built``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .machine import find_tool
from .stage import Row, Stage

_ROOT = Path(__file__).resolve().parent.parent.parent

_LIBRARY = _ROOT / "rnnkernels" / "lib"

#: The program of :mod:`.mechanisms`; git ignores the directory.
PROGRAM = _ROOT / "build" / "gpu_acceptance" / "mechanisms"

_SOURCE = _ROOT / "csrc" / "cuda" / "mechanisms.cu"

#: What a dry run compiles the program for.
_DRY_CAPABILITY = (9, 0)


def run(stage: Stage) -> None:
    program = None if stage.built else start_program(stage)
    stage.row("library", lambda: _library(stage))
    stage.row("mechanisms", lambda: _program(stage, program))


def start_program(stage: Stage) -> subprocess.Popen[str] | None:
    """Begin to compile the program beside the library, where there is an nvcc."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        return None
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    PROGRAM.unlink(missing_ok=True)
    command = [nvcc, "-std=c++17", "-O3", *_architecture(stage), str(_SOURCE), "-o", str(PROGRAM)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _architecture(stage: Stage) -> list[str]:
    major, minor = _DRY_CAPABILITY if stage.dry else torch.cuda.get_device_capability(stage.torch_device)
    number = f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}"
    return ["-gencode", f"arch=compute_{number},code=sm_{number}"]


def _library(stage: Stage) -> Row:
    if stage.dry:
        return {"unsupported": "a dry run builds no kernels"}
    if stage.built:
        return {"built": "before", **_report()}
    # The CPU's kernels are built beside it: the module that plans the CUDA kernels' schedules comes with them.
    variables = os.environ | {"RNNKERNELS_BUILD_CUDA": "1", "RNNKERNELS_BUILD_CPU": "1"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=_ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        return {"error": f"the CUDA kernels were not built: {done.stdout[-3000:]}"}
    return {"built": "now", **_report()}


def _report() -> dict[str, Any]:
    path = _LIBRARY / "build_report.json"
    return {"cuda": json.loads(path.read_text()).get("cuda") if path.exists() else None, "cores": os.cpu_count()}


def _program(stage: Stage, compiling: subprocess.Popen[str] | None) -> Row:
    if stage.built:
        return {"built": "before"} if PROGRAM.exists() else {"unsupported": "it was not built before"}
    if compiling is None:
        return {"unsupported": "nvcc is not installed"}
    output, _ = compiling.communicate()
    if compiling.returncode:
        return {"error": f"the program of mechanisms was not built: {output[-3000:]}"}
    return {"built": "now"}
