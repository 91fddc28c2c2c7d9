"""What the figures were measured on, by hardware: never a host's name, never a path."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

from rnnkernels import info

#: Of :mod:`torch.utils.collect_env`, what changes how fast things are and names neither a host nor a path.
_ENVIRONMENT_FIELDS = ("os", "gcc_version", "clang_version", "libc_version", "cuda_compiled_version", "cuda_runtime_version")
_ENVIRONMENT_FIELDS += ("nvidia_driver_version", "cudnn_version", "is_xnnpack_available")
_DRIVER_FIELDS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")

#: AMD's server parts all call themselves "AMD EPYC" to a guest; family and model tell the cores apart.
_AMD_CORES = (
    # family, models, name
    (0x17, range(0x00, 0x30), "Zen"),
    (0x17, range(0x30, 0x100), "Zen 2"),
    (0x19, range(0x10, 0x20), "Zen 4"),
    (0x19, range(0x60, 0x80), "Zen 4"),
    (0x19, range(0xA0, 0xB0), "Zen 4"),
    (0x19, range(0x00, 0x60), "Zen 3"),
    (0x1A, range(0x00, 0x100), "Zen 5"),
)


def describe(device: str = "cpu") -> dict[str, Any]:
    """The hardware: a readable name (a GPU's first, if it is what is measured), and what :mod:`rnnkernels.info` knows."""
    facts = info.collect()["machine"]
    cores = facts["physical_cores"] or facts["logical_cores"]
    name = f"{cores} core{'s' if cores > 1 else ''} {_cores_name(facts['cpu'])}"
    if device != "cpu" and facts["gpus"]:
        name = f"{facts['gpus'][0]['name'].removeprefix('NVIDIA ')}, {name}"
    return {"name": name, **facts}


def slug(name: str) -> str:
    """A directory's name for a machine's: "2 cores Zen 4" -> "2-cores-zen-4"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str | None:
    """The checkout's commit, with "+" behind it if code was changed since; None outside a git checkout."""
    root = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", "../rnnkernels", "../csrc", "."], cwd=root, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * (changes.returncode != 0)


def load_average() -> float | None:
    """Runnable processes over the last minute: how busy others kept the machine."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class Others:
    """How much of the processors' time other processes took since this was made: noise that no median removes."""

    def __init__(self) -> None:
        self.begin = self._now()

    def share(self) -> float | None:
        """Of all processors' time, 0 to 1; None where the system does not say."""
        if self.begin is None or (now := self._now()) is None:
            return None
        elapsed, busy, own = (after - before for after, before in zip(now, self.begin, strict=True))
        return round(min(1.0, max(0.0, (busy - own) / max(elapsed, 1e-9))), 3)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds so far: all processors', the busy ones among them, and this process's own."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        user, nice, system, idle, waiting, *others = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
        busy = user + nice + system + sum(others)
        return busy + idle + waiting, busy, time.process_time()


@functools.cache
def environment() -> dict[str, Any]:
    """Compilers, libraries and drivers, as torch's own bug reports name them."""
    found = collect_env.get_env_info()
    return {name: getattr(found, name, None) for name in _ENVIRONMENT_FIELDS}


def switches() -> dict[str, Any]:
    """Everything that changes how products are computed. Reading some of them raises after others were set."""
    readers: dict[str, Callable[[], Any]] = {
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "mkldnn.enabled": lambda: torch.backends.mkldnn.enabled,
        "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cuda.matmul.fp32_precision": lambda: torch.backends.cuda.matmul.fp32_precision,
        "bf16_reduced_precision_reduction": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16_reduced_precision_reduction": lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "cudnn.enabled": lambda: torch.backends.cudnn.enabled,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "cudnn.rnn.fp32_precision": lambda: torch.backends.cudnn.rnn.fp32_precision,
        "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
        "cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    }
    values: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            values[name] = read()
        except RuntimeError as error:
            values[name] = f"cannot be read: {str(error).splitlines()[0][:120]}"
    return values


def clocks(device: str = "cpu") -> dict[str, Any]:
    """MHz of the cores, or what the driver says of a GPU; ``{"unreadable": reason}`` where nobody says."""
    if device == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
        return {"cpu_mhz": [round(float(value)) for value in found]} if found else {"unreadable": "the system does not say"}
    return driver_values(_DRIVER_FIELDS, "unreadable")


def driver_values(fields: Sequence[str], absent: str) -> dict[str, Any]:
    """What nvidia-smi says of these fields of the first GPU; ``{absent: reason}`` where it says nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {absent: "nvidia-smi is not installed"}
    query = [tool, "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    values = done.stdout.strip().split(", ")
    if done.returncode or len(values) != len(fields):
        return {absent: f"nvidia-smi: {(done.stderr or done.stdout).strip()[:500]}"}
    return dict(zip(fields, values, strict=True))


def _cores_name(cpu: str | None) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpu and cpu.startswith("AMD") and cpuinfo.exists():
        fields = dict(re.findall(r"^(cpu family|model)\s*:\s*(\d+)", cpuinfo.read_text(), re.MULTILINE))
        for family, models, name in _AMD_CORES:
            if int(fields.get("cpu family", -1)) == family and int(fields.get("model", -1)) in models:
                return name
    return re.sub(r"\((R|TM)\)|\bCPU\b|@.*", "", cpu or "unknown processor").strip()
