"""What the figures were measured on, by hardware: never a host's name."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from rnnkernels import info

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


def describe() -> dict[str, Any]:
    """The hardware: a readable name, and what :mod:`rnnkernels.info` knows."""
    facts = info.collect()["machine"]
    cores = facts["physical_cores"] or facts["logical_cores"]
    return {"name": f"{cores} core{'s' if cores > 1 else ''} {_cores_name(facts['cpu'])}", **facts}


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


def _cores_name(cpu: str | None) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpu and cpu.startswith("AMD") and cpuinfo.exists():
        fields = dict(re.findall(r"^(cpu family|model)\s*:\s*(\d+)", cpuinfo.read_text(), re.MULTILINE))
        for family, models, name in _AMD_CORES:
            if int(fields.get("cpu family", -1)) == family and int(fields.get("model", -1)) in models:
                return name
    return re.sub(r"\((R|TM)\)|\bCPU\b|@.*", "", cpu or "unknown processor").strip()
