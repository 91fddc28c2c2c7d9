"""Loads what is compiled, each part once, and says why when it cannot."""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_DIRECTORY = Path(__file__).parent / "lib"
PATH = _DIRECTORY / "librnnkernels_cpu.so"
CUDA_PATH = _DIRECTORY / "librnnkernels_cuda.so"
REPORT = _DIRECTORY / "build_report.json"


@dataclass(frozen=True)
class Status:
    """Whether the CPU operators can be called."""

    available: bool
    reason: str | None  # why not; None when available
    path: Path
    build: dict[str, Any] = field(default_factory=dict)  # what setup.py reported; empty when it never ran


@functools.cache
def load() -> Status:
    """Load the library and return :func:`status`; later calls return the first outcome. Never raises."""
    build = _build_report()
    if not PATH.exists():
        return Status(False, _why_missing(build), PATH, build)
    try:
        torch.ops.load_library(PATH)
    except Exception as error:  # a wrong ABI, a missing dependency, a truncated file: all one thing to the caller
        return Status(False, f"{PATH.name} does not load: {error}", PATH, build)
    return Status(True, None, PATH, build)


@functools.cache
def load_cuda() -> Status:
    """The same for the CUDA operators' library."""
    build = _build_report().get("cuda") or {}
    if not CUDA_PATH.exists():
        reason = build.get("reason") or "the package was not built with them"
        return Status(False, f"the CUDA kernels were not built: {reason}", CUDA_PATH, build)
    try:
        torch.ops.load_library(CUDA_PATH)
    except Exception as error:
        return Status(False, f"{CUDA_PATH.name} does not load: {error}", CUDA_PATH, build)
    return Status(True, None, CUDA_PATH, build)


def load_eager() -> tuple[ModuleType | None, str | None]:
    """The module for calls in eager mode past Python (csrc/bindings/eager.cpp), or why it cannot be used. Never raises."""
    status = load()
    if not status.available:
        return None, status.reason
    built = status.build.get("eager")
    if not isinstance(built, dict):
        return None, "the package was built without rnnkernels._eager"
    if built.get("status") != "built":
        return None, f"rnnkernels._eager was not built: {built.get('reason')}"
    if built.get("torch") != torch.__version__:  # loading it could do anything
        return None, f"rnnkernels._eager was compiled against torch {built.get('torch')}, and this is {torch.__version__}"
    try:
        return importlib.import_module("rnnkernels._eager"), None
    except Exception as error:  # as above
        return None, f"rnnkernels._eager does not load: {error}"


def declines(*_: object) -> Any:
    """In place of a function of that module which cannot be used."""
    return NotImplemented


def status() -> Status:
    """What :func:`load` found."""
    return load()


def _build_report() -> dict[str, Any]:
    try:
        report = json.loads(REPORT.read_text())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _why_missing(build: dict[str, Any]) -> str:
    if not build:
        return "the native library was not built; install the package: pip install -e . --no-build-isolation"
    if build.get("status") == "built":
        return f"the native library was built but {PATH} is gone; install the package again"
    return f"the native library was not built: {build.get('reason', 'no reason recorded')}"
