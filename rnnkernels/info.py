"""What is installed and what it can do here: ``python -m rnnkernels.info [--json]``.

Meant for bug reports and for seeing why a backend is not used. Everything is collected by :func:`collect`, whose result is
what ``--json`` prints; :data:`SCHEMA` grows by one when a key changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import _library, backends, direct
from ._version import __version__

SCHEMA = 1

#: Variables that change what is built or computed, listed even when unset.
ENVIRONMENT = (
    "RNNKERNELS_BACKEND",
    "RNNKERNELS_CPU_ISA",
    "RNNKERNELS_KEPT_MEMORY_MIB",
    "RNNKERNELS_BUILD_CPU",
    "RNNKERNELS_BUILD_CUDA",
    "RNNKERNELS_TRITON_AUTOTUNE",
    "RNNKERNELS_CACHE_DIR",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TRITON_INTERPRET",
)


def collect() -> dict[str, Any]:
    """Everything :func:`main` prints, as JSON-serialisable values; an unknown value is None."""
    return {
        "schema": SCHEMA,
        "versions": _versions(),
        "machine": _machine(),
        "native": _native(),
        "backends": _backends(),
        "environment": _environment(),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"rnnkernels": __version__, "python": platform.python_version()}
    versions["torch"] = torch.__version__
    versions["cuda"] = torch.version.cuda
    for package in ("triton", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _machine() -> dict[str, Any]:
    capabilities = _cpu_capabilities()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": capabilities.get("cpu_name") or _cpu_name(),
        "physical_cores": capabilities.get("num_physical_cores"),
        "logical_cores": os.cpu_count(),
        "isa": sorted(name for name, value in capabilities.items() if value is True),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _cpu_capabilities() -> dict[str, Any]:
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 may not have it
    return dict(get_capabilities()) if get_capabilities is not None else {}


def _cpu_name() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def _native() -> dict[str, Any]:
    status, facts = _library.status(), _extension_facts()
    return {
        "available": status.available,
        "reason": status.reason,
        "path": str(status.path),
        "compiler": status.build.get("compiler"),
        "flags": status.build.get("flags"),
        "built_with_torch": status.build.get("torch"),
        "eager_calls": "compiled" if direct.reason is None else f"in Python: {direct.reason}",
        "isas_built": status.build.get("isas", []),
        "isas_supported": facts.get("cpu_isas_supported", []),
        "isa": facts.get("cpu_isa"),
        "isa_error": facts.get("cpu_isa_error"),
    }


def _extension_facts() -> dict[str, Any]:
    """What the optional extension module knows about this process; empty without it."""
    if importlib.util.find_spec("rnnkernels._C") is None:
        return {}
    from . import _C

    return _C.build_info()


def _backends() -> dict[str, dict[str, Any]]:
    requests = [
        backends.Request(cell="lstm", device=device, dtype=torch.float32, input_size=64, hidden_size=64)
        for device in [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    ]
    result = {}
    for name in backends.PREFERENCE:
        backend = backends.get(name)
        objections = [backend.unsupported(request) for request in requests]
        available = None in objections
        result[name] = {
            "description": backend.description,
            "available": available,
            "reason": None if available else "; ".join(dict.fromkeys(map(str, objections))),
        }
    return result


def _environment() -> dict[str, str | None]:
    others = sorted(name for name in os.environ if name.startswith("RNNKERNELS_") and name not in ENVIRONMENT)
    return {name: os.environ.get(name) for name in (*ENVIRONMENT, *others)}


# --- printing ------------------------------------------------------------------------------------------------------------


def render(info: dict[str, Any]) -> str:
    """The text form of :func:`collect`'s result."""
    machine, native = info["machine"], info["native"]
    lines = ["versions"]
    lines += [f"  {name:<12} {version or '(none)'}" for name, version in info["versions"].items()]
    cores = f"{machine['physical_cores'] or '?'} physical, {machine['logical_cores']} logical"
    lines += [
        "machine",
        f"  CPU          {machine['cpu'] or 'unknown'}, {machine['architecture']}, torch uses {machine['torch_isa']}",
        f"  cores        {cores}; torch runs {machine['torch_threads']} thread(s)",
    ]
    lines += [
        f"  GPU {i:<8} {gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_bytes'] / 2**30:.0f} GiB"
        for i, gpu in enumerate(machine["gpus"])
    ] or ["  GPU          none"]
    lines += ["native library", f"  {'loaded' if native['available'] else 'not loaded: ' + str(native['reason'])}"]
    lines += [f"  {name:<16} {_flat(native[name])}" for name in list(native)[2:] if native[name]]
    lines += ["backends, in the order auto tries them"]
    for name, backend in info["backends"].items():
        lines.append(f"  {name:<12} {backend['description']}: {backend['reason'] or 'available'}")
    lines += ["environment"]
    lines += [f"  {name:<22} {'(unset)' if value is None else value}" for name, value in info["environment"].items()]
    return "\n".join(lines)


def _flat(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rnnkernels.info", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    info = collect()
    print(json.dumps(info, indent=2) if options.json else render(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
