"""docs/extending.md is compiled: its cell computes its equations and gradients, and every cell runs on its schedule."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rnnkernels
from rnnkernels.backends import reference
from rnnkernels.layout import DirectionWeights

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
STEPS, BATCH, INPUT, HIDDEN = 7, 5, 6, 13  # H fills no vector


def blocks() -> dict[str, str]:
    """The page's code, by the file that its first line names."""
    found = re.findall(r"```(?:cpp|python)\n(?://|#) (?:in )?(\S+)\n(.*?)```", DOCUMENT, re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of the CPU's sources with what the page adds."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the page's code with")
    root = tmp_path_factory.mktemp("extended")
    for folder in ("csrc/cells", "csrc/cpu"):
        shutil.copytree(ROOT / folder, root / folder)
    for name, code in blocks().items():
        if name.startswith("csrc/"):
            assert not (root / name).exists()
            (root / name).write_text(code, encoding="utf-8")
    compiled(root, "-c", "-o", root / "gemm.o", root / "csrc/cpu/gemm.cpp")  # the same for all cells
    return root


def compiled(root: Path, *arguments: str | Path) -> None:
    """Without optimisation, which is quick."""
    flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-fPIC", f"-I{root}", "-DRNNKERNELS_ISA=baseline"]
    result = subprocess.run(["g++", *flags, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def library(sources: Path, cell: str, name: str) -> ctypes.CDLL:
    """One cell's kernels, from the sources as they stand now."""
    target = sources / f"{name}.so"
    files = (
        ROOT / "tests/cpp/extended_cell.cpp",
        sources / f"csrc/cpu/{cell}.cpp",
        sources / "gemm.o",
        ROOT / "csrc/cpu/rounds.cpp",
    )
    compiled(sources, f"-DRNNKERNELS_CELL_KERNELS=k{cell.capitalize()}", "-shared", "-o", target, *files)
    return ctypes.CDLL(str(target))


class Problem:
    """One layer of ``gates`` gates in float64, with its results by the kernels of a library."""

    def __init__(self, gates: int) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        self.x, self.h0, self.c0 = random(STEPS, BATCH, INPUT), random(1, BATCH, HIDDEN), random(1, BATCH, HIDDEN)
        rows = gates * HIDDEN
        self.weights = [0.3 * w for w in (random(rows, INPUT), random(rows, HIDDEN), random(rows), random(rows))]
        self.grad_output = random(STEPS, BATCH, HIDDEN)
        self.sizes = (ctypes.c_int64 * 4)(STEPS, BATCH, INPUT, HIDDEN)

    def forward(self, kernels: ctypes.CDLL) -> dict[str, Tensor]:
        shapes = {
            "output": (STEPS, BATCH, HIDDEN),
            "h_n": (1, BATCH, HIDDEN),
            "c_n": (1, BATCH, HIDDEN),
            "gates": (1, STEPS, BATCH, 4, HIDDEN),
            "cells": (1, STEPS, BATCH, HIDDEN),
        }
        results = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name, shape in shapes.items()}
        inputs = map(pointer, (self.x, self.h0, self.c0))
        kernels.forward(self.sizes, *inputs, pointers(self.weights), *map(pointer, results.values()))
        return results

    def backward(self, kernels: ctypes.CDLL, results: dict[str, Tensor]) -> list[Tensor]:
        """-> gradients of x, h0 and each weight."""
        grads = [torch.full_like(t, torch.nan) for t in (self.x, self.h0, *self.weights)]
        saved = (results["output"], results["gates"])
        kernels.backward(
            self.sizes,
            *map(pointer, (self.grad_output, self.x, self.h0)),
            pointers(self.weights),
            *map(pointer, (*saved, *grads[:2])),
            pointers(grads[2:]),
        )
        return grads


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def pointers(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def mgu_step():
    """The page's Python, at home in reference.py."""
    namespace = dict(vars(reference))
    exec(blocks()["rnnkernels/backends/reference.py"], namespace)
    return namespace["mgu_step"]


def by_equations(problem: Problem) -> tuple[Tensor, Tensor, list[Tensor]]:
    """-> output, gates, and by autograd the gradients of x, h0 and each weight."""
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.h0, *problem.weights)]
    x, h0, *weights = leaves
    step, h, outputs, gates = mgu_step(), h0[0], [], []
    for t in range(STEPS):
        h, own = step(x[t], h, DirectionWeights(*weights, None))
        outputs.append(h)
        gates.append(own)
    output = torch.stack(outputs)
    return output.detach(), torch.stack(gates)[None].detach(), list(torch.autograd.grad(output, leaves, problem.grad_output))


@pytest.fixture(scope="module")
def mgu(sources) -> ctypes.CDLL:
    return library(sources, "mgu", "mgu")


def test_the_pages_cell_computes_its_equations(mgu):
    problem = Problem(gates=2)
    results = problem.forward(mgu)
    output, gates, _ = by_equations(problem)
    torch.testing.assert_close(results["output"], output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results["gates"], gates, rtol=1e-12, atol=1e-12)
    assert torch.equal(results["h_n"][0], results["output"][-1])


def test_the_pages_backward_is_the_derivative_of_its_forward(mgu):
    problem = Problem(gates=2)
    grads = problem.backward(mgu, problem.forward(mgu))
    for own, expected in zip(grads, by_equations(problem)[2], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cell", ["lstm", "gru", "mgu"])
def test_every_cell_runs_on_the_pages_schedule(sources, cell):
    tables = sources / "csrc/cpu/tables.h"
    text = (ROOT / "csrc/cpu/tables.h").read_text(encoding="utf-8")
    replaced = text.replace(" Forward<Cell", " RowByRow<Cell").replace('#include "forward.h"', '#include "row_by_row.h"')
    assert replaced.count("RowByRow<") == 2
    tables.write_text(replaced, encoding="utf-8")
    kernels = library(sources, cell, f"{cell}_row_by_row")
    problem = Problem(gates={"lstm": 4, "gru": 3, "mgu": 2}[cell])
    results = problem.forward(kernels)
    if cell == "mgu":
        expected = by_equations(problem)[:2]
    else:
        with rnnkernels.use_backend("reference"):
            operator = getattr(torch.ops.rnnkernels, f"reference_{cell}_forward")
            states, flags = (
                ((problem.h0, problem.c0), (True, False, False, True)) if cell == "lstm" else ((problem.h0,), (True, False, True))
            )
            output, h_n, *rest = operator(problem.x, None, *states, problem.weights, *flags)
        if cell == "lstm":
            torch.testing.assert_close(results["c_n"], rest[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(results["cells"], rest[2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(results["h_n"], h_n, rtol=1e-12, atol=1e-12)
        expected = (output, rest[-2] if cell == "lstm" else rest[-1])
    torch.testing.assert_close(results["output"], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results["gates"], expected[1], rtol=1e-12, atol=1e-12)


def test_the_page_names_every_place_where_a_cell_is_named():
    """Each file outside the kernels, tests and documents that says "gru" is one the page sends to, or needs no change."""
    page = DOCUMENT + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    generic = {
        "__init__.py",
        "cells.py",
        "convert.py",
        "batching.py",
        "autocast.py",
        "derivatives.py",
        "warmup.py",
        "checks.py",
        "streaming.py",
    }
    for path in (ROOT / "rnnkernels").glob("*.py"):
        if re.search(r"\bgru\b", path.read_text(encoding="utf-8"), re.IGNORECASE) and path.name not in generic:
            assert f"rnnkernels/{path.name}" in page, path.name
