"""Builds the native parts of rnnkernels; everything else about the package is in pyproject.toml.

    pip install -e . --no-build-isolation

RNNKERNELS_BUILD_CPU decides what happens to the CPU kernels:
    auto  (default) build them; if that fails, say so and install without them
    1     build them or fail
    0     leave them out
and to the modules for Python that are written in C++. RNNKERNELS_BUILD_CUDA does the same for the CUDA kernels, which need nvcc
and a torch built for CUDA; TORCH_CUDA_ARCH_LIST names the architectures, by default the visible GPU's, or those of
CUDA_ARCHITECTURES.
CXX, CXXFLAGS, CUDA_HOME and MAX_JOBS are honoured. The outcome is written to rnnkernels/lib/build_report.json.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
LIBRARY = "librnnkernels_cpu.so"
CUDA_LIBRARY = "librnnkernels_cuda.so"
REPORT = "build_report.json"

COMMON_FLAGS = ["-std=c++17", "-O2", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# The loops of the tiles on lines of their own: where they fall otherwise is worth up to 9 % either way (docs/cpu-kernels.md).
COMMON_FLAGS += ["-falign-loops=64"]
# The kernels are compiled once per instruction set; the flags choose the vector width (csrc/cpu/simd.h).
X86_ISAS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}
X86_ISAS["avx512_bf16"] = [*X86_ISAS["avx512"], "-mavx512bf16"]
KERNELS = ["cpu/gemm.cpp", "cpu/lstm.cpp", "cpu/gru.cpp"]
# 8.6 and 8.9 run what is compiled for 8.0.
CUDA_ARCHITECTURES = "7.5;8.0;9.0a;10.0;12.0+PTX"
CUDA_PRODUCTS = ("BFloat16Product", "Float16Product", "Tf32Product", "Tf32x3Product")
CUDA_UNITS = [(cell, product) for cell in ("Lstm", "Gru") for product in CUDA_PRODUCTS]
CUDA_HOST = [f"bindings/{name}.cpp" for name in ("ops_cuda", "cuda_layer", "cuda_persistent", "cuda_stepwise")]
CUDA_HOST += ["cuda/plan.cpp", "cuda/stepwise.cpp"]
# Part of the Python module, which works without the operators.
MODULE_KERNELS = ["cpu/stream_kernels.cpp", "cpu/wall_probes.cpp"]
# Compiled against the torch that is there, and of use with no other.
EAGER = "rnnkernels._eager"
# LibTorch's stable ABI as of 2.11: one binary for that version and later ones.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"


class BuildError(Exception):
    """Why the native parts cannot be built, in words for the person who installs."""


@dataclass
class Toolchain:
    compiler: list[str]
    version: str
    flags: list[str]
    isas: dict[str, list[str]]


def run(command: list[str]) -> None:
    if GIVEN_UP.is_set():
        raise BuildError("another library, which must be there, could not be built")
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode != 0:
        tail = "\n".join(result.stdout.strip().splitlines()[-30:])
        raise BuildError(f"{shlex.join(command)} failed with status {result.returncode}:\n{tail}")


def find_toolchain() -> Toolchain:
    wanted = os.environ.get("CXX")
    compiler = shlex.split(wanted) if wanted else [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    if not compiler or shutil.which(compiler[0]) is None:
        raise BuildError(f"no C++ compiler: {wanted or 'none of c++, g++, clang++'} is not on the path (set CXX)")
    version = subprocess.run([*compiler, "--version"], stdout=subprocess.PIPE, text=True, errors="replace").stdout
    flags = COMMON_FLAGS + shlex.split(os.environ.get("CXXFLAGS", ""))
    isas: dict[str, list[str]] = {"baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        isas.update((name, isa) for name, isa in X86_ISAS.items() if accepts(compiler, isa))
    return Toolchain(compiler, version.splitlines()[0] if version else "unknown", flags, isas)


def accepts(compiler: list[str], flags: list[str]) -> bool:
    command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            f"torch is not importable in this environment ({error}): install torch, pybind11 and setuptools first, "
            "then pip install --no-build-isolation"
        ) from error
    return torch


def compile_all(tools: Toolchain, commands: list[tuple[str, list[str], Path]]) -> None:
    run_all(
        [
            [*tools.compiler, *tools.flags, *flags, "-c", str(SOURCES / source), "-o", str(target)]
            for source, flags, target in commands
        ]
    )


#: Runs the compilers of both libraries, which are built side by side, until one that must be there has failed.
COMPILERS = ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
GIVEN_UP = threading.Event()


def run_all(commands: list[list[str]]) -> None:
    tasks = [COMPILERS.submit(run, command) for command in commands]
    try:
        for task in tasks:
            task.result()
    finally:  # after a failure, the others' results are of no use
        for task in tasks:
            task.cancel()
        wait(tasks)


def build(tools: Toolchain, package: Path, module: Path, scratch: Path) -> None:
    """Compile and link: `package`/lib/LIBRARY with the operators, and `module`, the Python extension."""
    torch = import_torch()
    import pybind11

    torch_root = Path(torch.__file__).parent
    widths = [f"-DRNNKERNELS_WITH_{isa.upper()}" for isa in tools.isas if isa != "baseline"]
    facts = {
        "VERSION": version(),
        "COMPILER": tools.version,
        "FLAGS": shlex.join(tools.flags),
        "TORCH": torch.__version__,
    }
    # Each entry: source, its own flags, object file.
    kernels, module_kernels = (
        [
            (source, [f"-DRNNKERNELS_ISA={isa}", *flags], scratch / f"{Path(source).stem}.{isa}.o")
            for isa, flags in tools.isas.items()
            for source in sources
        ]
        for sources in (KERNELS, MODULE_KERNELS)
    )
    table = ("cpu/kernels.cpp", widths, scratch / "kernels.o")
    dispatch = ("cpu/dispatch.cpp", widths, scratch / "dispatch.o")
    rounds = ("cpu/rounds.cpp", [], scratch / "rounds.o")
    memory = ("cpu/kept_memory.cpp", [], scratch / "kept_memory.o")
    operators = (
        "bindings/ops_cpu.cpp",
        [STABLE_ABI, "-isystem", str(torch_root / "include")],
        scratch / "ops_cpu.o",
    )
    headers = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    definitions = [f"-DRNNKERNELS_{name}={json.dumps(value)}" for name, value in facts.items()]
    python = [
        ("bindings/python.cpp", [*definitions, *headers], scratch / "python.o"),
        ("bindings/stream.cpp", headers, scratch / "stream_session.o"),
        ("bindings/wall.cpp", headers, scratch / "wall_functions.o"),
        ("cpu/stream.cpp", widths, scratch / "stream.o"),
        ("cpu/wall.cpp", widths, scratch / "wall.o"),
        ("cuda/plan.cpp", [], scratch / "plan.o"),
        *module_kernels,
    ]
    compile_all(tools, [*kernels, operators, *python, table, dispatch, rounds, memory])

    library_objects = [str(target) for _, _, target in [*kernels, table, dispatch, rounds, memory, operators]]
    (package / "lib").mkdir(parents=True, exist_ok=True)
    # No Python in the library, and no run-time path: torch is loaded before both.
    libtorch = [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    link(tools, package / "lib" / LIBRARY, [*library_objects, *libtorch])
    link(tools, module, [*(str(target) for _, _, target in [*python, dispatch, rounds]), *libtorch])


def build_eager(tools: Toolchain, module: Path, scratch: Path) -> None:
    """Compile and link `module`, calls in eager mode."""
    root = Path(import_torch().__file__).parent
    # torch's headers come with a pybind11 of their own.
    headers = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include")]
    flags = [argument for header in headers for argument in ("-isystem", str(header))]
    target = scratch / "eager.o"
    compile_all(tools, [("bindings/eager.cpp", flags, target)])
    link(tools, module, [str(target), f"-L{root / 'lib'}", "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"])


def find_cuda(torch) -> Path:
    """The CUDA toolkit to build with."""
    if torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} is built without CUDA")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    on_path = shutil.which("nvcc")
    if on_path:
        homes.insert(1, str(Path(on_path).resolve().parents[1]))
    for home in homes:
        # An nvcc on the path may be a script in front of another.
        if home and (Path(home) / "bin" / "nvcc").exists() and (Path(home) / "include" / "cuda_runtime_api.h").exists():
            return Path(home)
    raise BuildError("no CUDA toolkit, nvcc with its headers, is on the path or under CUDA_HOME")


def cuda_architectures(torch) -> str:
    """The architectures to build for, as in TORCH_CUDA_ARCH_LIST."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not wanted and torch.cuda.is_available():
        capabilities = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
        wanted = ";".join(f"{major}.{minor}{'a' if (major, minor) == (9, 0) else ''}" for major, minor in capabilities)
    return (wanted or CUDA_ARCHITECTURES).replace(" ", ";")


def generated_for(names: list[str]) -> list[str]:
    """nvcc's flags for architectures. What takes longest is making PTX: where kernels have no reason to differ, architectures
    share that of the oldest of them."""
    codes: dict[str, list[str]] = {}
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        major = int(name.split(".")[0])
        ptx = "80" if major == 8 else "100" if major >= 10 and number.isdigit() else number
        codes.setdefault(ptx, []).append(f"sm_{number}")
        if name.endswith("+PTX"):
            codes[ptx].append(f"compute_{ptx}")
    return [flag for ptx, code in codes.items() for flag in ("-gencode", f"arch=compute_{ptx},code=[{','.join(code)}]")]


def build_cuda(torch, tools: Toolchain, package: Path, scratch: Path) -> str:
    """Compile and link `package`/lib/CUDA_LIBRARY; the architectures it is for."""
    home = find_cuda(torch)
    architectures = cuda_architectures(torch)
    names = architectures.split(";")
    flags = generated_for(names)
    # Below 8.0 there are no tensor cores for the persistent schedules: no plan takes them there, but they must be linked.
    recent = generated_for([name for name in names if int(name.split(".")[0]) >= 8] or ["8.0"])
    nvcc = [str(home / "bin" / "nvcc"), "-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    kernels = str(SOURCES / "cuda" / "recurrence.cu")

    def defines(cell: str, product: str) -> list[str]:
        return [f"-DRNNKERNELS_CELL={cell}", f"-DRNNKERNELS_PRODUCT={product}"]

    units = [
        [*nvcc, *recent, *defines(cell, product), "-c", kernels, "-o", str(scratch / f"{cell}.{product}.o")]
        for cell, product in CUDA_UNITS
    ]
    small = [
        [*nvcc, *flags, "-c", str(SOURCES / "cuda" / f"{name}.cu"), "-o", str(scratch / f"{name}.o")]
        for name in ("launch", "auxiliary", "stepwise")
    ]
    include = Path(torch.__file__).parent / "include"
    host = [*tools.compiler, *tools.flags, "-isystem", str(include), "-isystem", str(home / "include"), "-DUSE_CUDA", STABLE_ABI]
    rest = [[*host, "-c", str(SOURCES / source), "-o", str(scratch / f"host_{Path(source).stem}.o")] for source in CUDA_HOST]
    run_all([*units, *small, *rest])
    objects = [command[-1] for command in [*units, *small, *rest]]
    libraries = [f"-L{include.parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
    toolkit = next((home / name for name in ("lib64", "lib", "targets/x86_64-linux/lib") if (home / name).exists()), home)
    link(tools, package / "lib" / CUDA_LIBRARY, [*objects, *libraries, f"-L{toolkit}", "-lcudart"])
    return architectures


def link(tools: Toolchain, target: Path, arguments: list[str]) -> None:
    # To a name of its own first: a process that has the old library mapped keeps it.
    fresh = target.with_name(target.name + ".new")
    shared = ["-shared"] if sys.platform != "darwin" else ["-shared", "-undefined", "dynamic_lookup"]
    run([*tools.compiler, *shared, "-o", str(fresh), *arguments])
    os.replace(fresh, target)


def version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / "rnnkernels" / "_version.py").read_text(), scope)
    return scope["__version__"]


class BuildNative(build_ext):
    """Takes the place of setuptools' compilation; the extensions it is given only name what is produced."""

    def run(self) -> None:
        package = ROOT / "rnnkernels" if self.inplace else Path(self.build_lib).resolve() / "rnnkernels"
        module = package / Path(self.get_ext_filename("rnnkernels._C")).name
        wish = os.environ.get("RNNKERNELS_BUILD_CPU", "auto")
        if wish not in ("auto", "0", "1"):
            raise SystemExit(f"RNNKERNELS_BUILD_CPU={wish}: must be auto, 1 or 0")
        (package / "lib").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as beside:
            eager = beside.submit(self.run_eager, wish, package / Path(self.get_ext_filename(EAGER)).name)
            cuda = beside.submit(self.run_cuda, package)
            report = self.run_cpu(wish, package, module)
            try:
                report["eager"] = eager.result()
            except SystemExit:
                GIVEN_UP.set()
                raise
            report["cuda"] = cuda.result()
        (package / "lib" / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        if self.inplace:
            (package / "lib" / ".gitignore").write_text("*\n")

    def run_cpu(self, wish: str, package: Path, module: Path) -> dict[str, Any]:
        report = {"status": "built", "reason": None, "compiler": None, "flags": None, "isas": [], "torch": None}
        try:
            if wish == "0":
                raise BuildError("RNNKERNELS_BUILD_CPU=0")
            report["torch"] = import_torch().__version__
            tools = find_toolchain()
            report.update(compiler=tools.version, flags=shlex.join(tools.flags), isas=list(tools.isas))
            with tempfile.TemporaryDirectory(prefix="rnnkernels-build-") as scratch:
                build(tools, package, module, Path(scratch))
        except (BuildError, OSError, ImportError) as error:
            report.update(status="skipped" if wish == "0" else "failed", reason=str(error))
            # What an earlier build left would pass for this one's.
            for stale in (package / "lib" / LIBRARY, module):
                stale.unlink(missing_ok=True)
            self.announce_failure(str(error), wish)
            if wish == "1":
                GIVEN_UP.set()
                raise SystemExit(f"RNNKERNELS_BUILD_CPU=1, but the CPU kernels could not be built: {error}") from None
        finally:
            (package / "lib" / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        return report

    def run_eager(self, wish: str, module: Path) -> dict[str, str | None]:
        try:
            if wish == "0":
                raise BuildError("RNNKERNELS_BUILD_CPU=0")
            with tempfile.TemporaryDirectory(prefix="rnnkernels-build-") as scratch:
                build_eager(find_toolchain(), module, Path(scratch))
            return {"status": "built", "reason": None, "torch": import_torch().__version__}
        except (BuildError, OSError) as error:
            module.unlink(missing_ok=True)
            if wish == "1":
                raise SystemExit(f"RNNKERNELS_BUILD_CPU=1, but {EAGER} could not be built: {error}") from None
            print(f"rnnkernels: without {EAGER}, calls of small layers take longer: {error}", file=sys.stderr)
            return {"status": "skipped" if wish == "0" else "failed", "reason": str(error), "torch": None}

    def run_cuda(self, package: Path) -> dict[str, str | None]:
        wish = os.environ.get("RNNKERNELS_BUILD_CUDA", "auto")
        if wish not in ("auto", "0", "1"):
            raise SystemExit(f"RNNKERNELS_BUILD_CUDA={wish}: must be auto, 1 or 0")
        try:
            if wish == "0":
                raise BuildError("RNNKERNELS_BUILD_CUDA=0")
            with tempfile.TemporaryDirectory(prefix="rnnkernels-build-") as scratch:
                architectures = build_cuda(import_torch(), find_toolchain(), package, Path(scratch))
            return {"status": "built", "reason": None, "architectures": architectures}
        except (BuildError, OSError) as error:
            # What an earlier build left would pass for this one's.
            (package / "lib" / CUDA_LIBRARY).unlink(missing_ok=True)
            if wish == "1":
                raise SystemExit(f"RNNKERNELS_BUILD_CUDA=1, but the CUDA kernels could not be built: {error}") from None
            print(f"rnnkernels: without the CUDA kernels: {error}", file=sys.stderr)
            return {"status": "skipped", "reason": str(error), "architectures": None}

    def announce_failure(self, reason: str, wish: str) -> None:
        line = "=" * 100
        what = "left out" if wish == "0" else "NOT built"
        print(
            f"\n{line}\nrnnkernels: the CPU kernels were {what}; layers fall back to torch's own.\n{reason}\n{line}\n",
            file=sys.stderr,
        )

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "rnnkernels"
        candidates = [package / "lib" / name for name in (LIBRARY, CUDA_LIBRARY, REPORT)]
        candidates += [package / Path(self.get_ext_filename(name)).name for name in ("rnnkernels._C", EAGER)]
        return [str(path) for path in candidates if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("rnnkernels._C", sources=[])], cmdclass={"build_ext": BuildNative})
