"""setup.py, with compilers and a torch that only pretend: what is compiled for what, and what becomes of a failure."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_COMPILER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in --version) echo "pretender 1.0"; exit;; *{broken}*) echo "it does not compile"; exit 1;; esac
while [ $# -gt 1 ]; do [ "$1" = -o ] && touch "$2"; shift; done
exit 0
"""

_TORCH = """
from types import SimpleNamespace
__version__ = "2.13.0"
version = SimpleNamespace(cuda="13.0")
cuda = SimpleNamespace(is_available=lambda: False)
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """``build(broken, **variables)`` runs setup.py in a copy of the checkout; what is named so does not compile. -> how that
    ended, the report, and what the compilers were asked."""
    checkout, toolkit, log = tmp_path / "checkout", tmp_path / "cuda", tmp_path / "log"
    checkout.mkdir()
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "rnnkernels", checkout / "rnnkernels", ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"))
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "include").mkdir()
    (toolkit / "include" / "cuda_runtime_api.h").touch()
    (tmp_path / "python" / "torch").mkdir(parents=True)
    (tmp_path / "python" / "torch" / "__init__.py").write_text(_TORCH)
    monkeypatch.chdir(checkout)

    def run(broken="no-such-source", **variables):
        for compiler in (tmp_path / "c++", toolkit / "bin" / "nvcc"):
            compiler.write_text(_COMPILER.format(log=log, broken=broken))
            compiler.chmod(0o755)
        log.write_text("")
        paths = {"CXX": tmp_path / "c++", "CUDA_HOME": toolkit, "PYTHONPATH": tmp_path / "python"}
        environment = os.environ | {name: str(path) for name, path in paths.items()} | variables | {"TORCH_CUDA_ARCH_LIST": ""}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return done, json.loads((checkout / "rnnkernels" / "lib" / "build_report.json").read_text()), log.read_text()

    return run


def test_both_libraries_are_built_and_ptx_is_made_once_for_architectures_of_a_kind(build):
    done, _, log = build(RNNKERNELS_BUILD_CPU="1", RNNKERNELS_BUILD_CUDA="1")
    assert done.returncode == 0, done.stderr
    unit = next(line for line in log.splitlines() if "recurrence.cu" in line)
    assert re.findall(r"arch=(\S+),code=\[(\S+)\]", unit) == [
        ("compute_80", "sm_80"),
        ("compute_90a", "sm_90a"),
        ("compute_100", "sm_100,sm_120,compute_100"),
    ]
    assert sorted(path.name for path in Path("rnnkernels/lib").glob("*.so")) == ["librnnkernels_cpu.so", "librnnkernels_cuda.so"]


def test_a_library_that_does_not_compile_is_left_out_with_the_reason_and_the_other_is_built(build):
    done, report, _ = build("recurrence.cu", RNNKERNELS_BUILD_CPU="1", RNNKERNELS_BUILD_CUDA="auto")
    assert done.returncode == 0, done.stderr
    assert (report["status"], report["cuda"]["status"]) == ("built", "skipped")
    assert "it does not compile" in report["cuda"]["reason"]
    assert [path.name for path in Path("rnnkernels/lib").glob("*.so")] == ["librnnkernels_cpu.so"]
    done, report, _ = build("bindings/stream.cpp", RNNKERNELS_BUILD_CPU="1", RNNKERNELS_BUILD_CUDA="auto")
    assert done.returncode == 1
    assert "RNNKERNELS_BUILD_CPU=1, but" in done.stderr and "it does not compile" in report["reason"]


def test_without_the_module_for_eager_mode_the_kernels_are_there_but_not_where_a_build_is_asked_for(build):
    done, report, log = build("bindings/eager.cpp", RNNKERNELS_BUILD_CPU="auto", RNNKERNELS_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert (report["status"], report["eager"]["status"]) == ("built", "failed")
    assert "it does not compile" in report["eager"]["reason"]
    assert not list(Path("rnnkernels").glob("_eager*"))
    done, _, _ = build("bindings/eager.cpp", RNNKERNELS_BUILD_CPU="1", RNNKERNELS_BUILD_CUDA="0")
    assert done.returncode == 1
    assert "RNNKERNELS_BUILD_CPU=1, but rnnkernels._eager could not be built" in done.stderr
    done, report, log = build(RNNKERNELS_BUILD_CPU="auto", RNNKERNELS_BUILD_CUDA="0")
    assert (report["eager"]["status"], report["eager"]["torch"]) == ("built", "2.13.0")
    assert len(list(Path("rnnkernels").glob("_eager*.so"))) == 1
    done, report, log = build(RNNKERNELS_BUILD_CPU="0", RNNKERNELS_BUILD_CUDA="0")
    assert done.returncode == 0 and report["eager"]["status"] == "skipped" and "eager.cpp" not in log
