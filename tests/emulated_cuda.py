"""The CUDA operators on the emulated machine: csrc/bindings/ as it is shipped, its kernels run by csrc/emulation, its products
by torch on the CPU. A backend "emulated" for tests, which takes CPU tensors the way backend "cuda" takes CUDA tensors.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rnnkernels import backends, ops
from rnnkernels.backends import Backend, native

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("csrc/bindings/*cuda*.cpp", "csrc/cuda/*.cpp", "csrc/emulation/*.cpp", "tests/emulation/launch.cpp")
# Compiling what is optimised takes longer than running what is not.
FLAGS = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden"]
DEFINITIONS = ["-DRNNKERNELS_EMULATED", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def build() -> Path:
    """Compile the library, unless it is there and newer than all its sources."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulation switches between stacks as Linux does")
    directory = ROOT / "build" / "emulated"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes run other tests
        return _build(directory, directory / "emulated_cuda.so")


def _build(directory: Path, library: Path) -> Path:
    newest = max(path.stat().st_mtime for pattern in ("csrc/**/*", "tests/emulation/*") for path in ROOT.glob(pattern))
    if library.exists() and library.stat().st_mtime > max(newest, Path(torch.__file__).stat().st_mtime):
        return library
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler: set CXX")
    torch_root = Path(torch.__file__).parent
    sources = [source for pattern in PATTERNS for source in sorted(ROOT.glob(pattern))]
    objects = [directory / f"{source.stem}.o" for source in sources]
    command = [*compiler.split(), *FLAGS, *DEFINITIONS, "-isystem", str(torch_root / "include")]

    def run(arguments: list) -> None:
        result = subprocess.run([*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert result.returncode == 0, result.stdout[-3000:]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: run([*command, "-c", pair[0], "-o", pair[1]]), zip(sources, objects, strict=True)))
    libraries = [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    run([*compiler.split(), "-shared", *objects, *libraries, "-o", library])
    return library


@functools.cache
def load() -> torch.library.Library:
    """Load the library and register what the backend calls; the operators live as long as what is returned."""
    torch.ops.load_library(build())
    library = torch.library.Library("rnnkernels", "FRAGMENT")
    for name, schema in ops._SCHEMAS.items():
        library.define(f"emulated_{name}{schema}")
        cuda = getattr(torch.ops.rnnkernels, f"cuda_{name}").default
        library.impl(f"emulated_{name}", functools.partial(_run, cuda), "CompositeExplicitAutograd")
    _define_wide_products()
    return library


def _run(cuda: torch._ops.OpOverload, *arguments):
    return native.run(cuda, arguments, arguments[0] if isinstance(arguments[0], Tensor) else torch.empty(0))


_aten = torch.library.Library("aten", "IMPL")


def _define_wide_products() -> None:
    """torch multiplies half types into float32 on CUDA only."""

    def mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        return a.to(dtype) @ b.to(dtype)

    def out(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
        return out.copy_(a.to(dtype) @ b.to(dtype))

    _aten.impl("mm.dtype", mm, "CPU")
    _aten.impl("mm.dtype_out", out, "CPU")
    _aten.impl("bmm.dtype_out", out, "CPU")


@contextmanager
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything inside is computed by the emulated CUDA operators, backward in this thread."""
    load()
    known = Backend("emulated", "CUDA kernels, emulated", "emulated_", lambda request: None)
    monkeypatch.setattr(backends, "_BACKENDS", (*backends._BACKENDS, known))
    monkeypatch.setattr(backends, "NAMES", (*backends.NAMES, "emulated"))
    with backends.use_backend("emulated"):
        yield
