"""Stage 1: what everything else was measured on, by hardware: no name of a host, no path."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import torch
import triton

from rnnkernels import info

from .. import machine
from .schedules import cuda_missing, gpu, pretend_gpu
from .stage import Row, Stage

#: What the driver is asked for; it is only read, never set.
_DRIVER_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
    "compute_mode",
    "mig.mode.current",
)

_TOOLS = ("ncu", "compute-sanitizer", "nvcc", "nvidia-smi")


def run(stage: Stage) -> None:
    stage.row("hardware", lambda: _hardware(stage))
    stage.row("versions", _versions)
    stage.row("switches", _switches)
    stage.row("driver", lambda: machine.driver_values(_DRIVER_FIELDS, "unsupported"))
    stage.row("tools", lambda: {"found": {name: find_tool(name) is not None for name in _TOOLS}})
    stage.row("environment", _environment)


def conditions(stage: Stage, commit: str | None) -> dict[str, Any]:
    """What every file of the run begins with."""
    if stage.dry:
        pretend_gpu()
    return {
        "machine": hardware_name(stage.torch_device),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit or machine.commit(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if stage.torch_device.type == "cuda" else None,
        "cuda_kernels": cuda_missing() or "built",
        "dry_run": stage.dry,
    }


def hardware_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{machine.describe()['name']}, interpreted"
    return torch.cuda.get_device_name(device).removeprefix("NVIDIA ").strip()


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on the PATH or where the toolkit puts it."""
    places = [*Path("/usr/local").glob("cuda*/bin"), *Path("/opt/nvidia/nsight-compute").glob("*")]
    found = [str(place / name) for place in sorted(places, reverse=True) if (place / name).is_file()]
    return shutil.which(name) or (found[0] if found else None)


def _hardware(stage: Stage) -> Row:
    cpu = {key: value for key, value in machine.describe().items() if key not in ("gpus", "isa")}
    device = gpu(torch.empty(1, device=stage.torch_device))
    row: Row = {"name": hardware_name(stage.torch_device), "cpu": cpu, "plan": device.triton._asdict()}
    if stage.dry:
        return row
    properties = torch.cuda.get_device_properties(stage.torch_device)
    names = (
        "multi_processor_count",
        "major",
        "minor",
        "total_memory",
        "L2_cache_size",
        "shared_memory_per_block_optin",
        "shared_memory_per_multiprocessor",
        "regs_per_multiprocessor",
        "max_threads_per_multi_processor",
        "warp_size",
    )
    return row | {name: getattr(properties, name, None) for name in names}


def _versions() -> Row:
    return dict(info.collect()["versions"])


def _switches() -> Row:
    variables = {name: value for name, value in info.collect()["environment"].items() if value is not None}
    return {"switches": machine.switches(), "variables": variables}


def _environment() -> Row:
    return dict(machine.environment())
