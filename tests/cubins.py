"""Compiles Triton kernels as launchers would, for GPUs that are not here, and reads the machine code.

Run as a program in a process of its own, for Triton decides once between compiling and interpreting: configurations as JSON on
standard input, one report per compiled kernel as JSON on standard output. Signatures are not restated: a launcher is called with
tensors on the CPU, and what it hands to ``sequence.start`` goes through Triton's own specialisation.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from cases import GATES, N_STATES

from rnnkernels.backends.triton.plan import Device, Tiling, Workload, shared_memory

#: Per architecture: a GPU of it, and the number that stands for it as a device index.
DEVICES = {
    "sm_80": Device(108, 166912),
    "sm_90": Device(132, 232448),
    "sm_100": Device(148, 232448),
    "gfx942": Device(304, 65536),
}

#: Instructions to count, each by a pattern of its name.
INSTRUCTIONS = {
    "matrix": r"\b(HMMA|HGMMA|UTC\w*MMA)\b",
    "tensor group": r"\b(HGMMA|UTC\w*MMA)\b",
    "local memory": r"\b(LDL|STL)\b",
    "arrival": r"\b(ATOMG?|REDG?)\b",
}


class Configuration(NamedTuple):
    """What decides over a kernel's machine code."""

    architecture: str  # a key of DEVICES
    cell: str
    backward: bool
    dtype: str  # a name in torch
    precision: str  # of products
    hidden_size: int
    tiling: tuple  # a Tiling's fields
    packed: bool = True
    training: bool = True  # gates are saved; a gradient comes from the output

    @property
    def schedule(self) -> str:
        return self.tiling[0]

    @property
    def work(self) -> Workload:
        size = getattr(torch, self.dtype).itemsize
        return Workload(self.cell, self.backward, self.hidden_size, 16, 1, size, self.precision)

    def __str__(self) -> str:
        flags = ("packed" if self.packed else "dense", "training" if self.training else "inference")
        return f"{self.architecture} H={self.hidden_size} {Tiling(*self.tiling)}, {', '.join(flags)}"


class Report(NamedTuple):
    """One kernel's resources, and how often instructions stand in its time loop."""

    registers: int
    stack: int  # bytes per thread
    shared: int  # bytes per program
    estimate: int  # of ``shared``, by plan.shared_memory
    in_loop: dict[str, int]
    carried: list[str]  # variables that the time loop hands from one turn to the next


def compile_all(configurations: list[Configuration], folder: Path) -> dict[Configuration, list[Report]]:
    """Reports of the kernels each configuration launches, compiled in a process of its own; ``folder`` keeps the results."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, __file__], input=json.dumps(configurations), env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-4000:]
    reports = json.loads(result.stdout)
    return {c: [Report(*r) for r in own] for c, own in zip(configurations, reports, strict=True)}


# --- in the process of its own -------------------------------------------------------------------------------------------


def _compiled_by(configuration: Configuration) -> list:
    """Triton's compiled kernels, one per launch."""
    import triton
    from triton.backends.compiler import GPUTarget

    from rnnkernels.backends.triton import gru, lstm, sequence, tuning

    architecture = configuration.architecture
    hip = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if hip else GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    device = list(DEVICES).index(architecture)
    triton.runtime.driver.set_active(
        SimpleNamespace(get_current_device=lambda: device, get_current_stream=lambda device: 0, get_current_target=lambda: target)
    )
    compiled = []

    def start(kernel, grid, arguments, options):
        compiled.append(kernel.run(grid=grid, warmup=True, **arguments, **options))

    torch.backends.cudnn.rnn.fp32_precision = "tf32" if configuration.precision == "tf32" else "ieee"
    with (
        mock.patch.object(sequence, "start", start),
        mock.patch.object(sequence, "device_of", lambda tensor: DEVICES[architecture]),
        mock.patch.object(torch.version, "hip", "6.0" if hip else None),
        tuning.forced(Tiling(*configuration.tiling)),
    ):
        _call({"lstm": lstm, "gru": gru}[configuration.cell], configuration)
    return compiled


def _call(module, configuration: Configuration) -> None:
    """The launcher of one pass over two steps, on tensors with anything in them."""
    cell, H, N = configuration.cell, configuration.hidden_size, configuration.work.batch
    new = torch.empty(0, dtype=getattr(torch, configuration.dtype)).new_zeros
    rows = (2 * N,) if configuration.packed else (2, N)
    batch_sizes = torch.tensor([N, N]) if configuration.packed else None
    n_states, gates = N_STATES[cell], GATES[cell]
    states = [new(1, N, H) for _ in range(n_states)]
    weights = [new(gates * H, 3), new(gates * H, H), new(gates * H), new(gates * H)]
    flags = (True, False, False) if cell == "lstm" else (True, False)  # biases, projection, both directions
    if not configuration.backward:
        module.forward(new(*rows, 3), batch_sizes, *states, weights, *flags, configuration.training)
        return
    d_output = new(*rows, H) if configuration.training else None
    saved = [new(1, *rows, 4, H), new(1, *rows, H).to(torch.promote_types(new(0).dtype, torch.float32))][:n_states]
    module.backward(d_output, *states, new(*rows, 3), batch_sizes, *states, weights, new(*rows, H), *saved, *flags, False, False)


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def _carried(ttir: str) -> list[str]:
    """The names before the loop that carries the most, without the numbers Triton tells its values apart by."""
    loops = re.findall(r"scf\.for .*?iter_args\((.*?)\) ->", ttir)
    return max(([re.sub(r"_\d+$", "", n) for n in re.findall(r"%(\w+) = ", loop)] for loop in loops), key=len, default=[])


def _read(kernel, estimate: int) -> Report:
    carried = _carried(kernel.asm["ttir"])
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
        spilled = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1]) + int(
            re.search(r"\.sgpr_spill_count:\s+(\d+)", text)[1]
        )
        return Report(
            registers, spilled, kernel.metadata.shared, estimate, {"matrix": len(re.findall(r"\bv_mfma", text))}, carried
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("cuobjdump", "-sass", file.name)
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    body = _largest_loop(code)
    in_loop = {name: sum(bool(re.search(pattern, line)) for line in body) for name, pattern in INSTRUCTIONS.items()}
    return Report(registers, stack, kernel.metadata.shared, estimate, in_loop, carried)


def _largest_loop(code: str) -> list[str]:
    """The instructions between a branch and the furthest it goes back."""
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?);", code, re.MULTILINE)]
    first = last = 0
    for address, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and address - int(jump[1], 16) > last - first:
            first, last = int(jump[1], 16), address
    return [text for address, text in lines if first <= address <= last and last > first]


def _reports(configuration: Configuration) -> list[Report]:
    torch.set_num_threads(1)
    tiling = Tiling(*configuration.tiling)
    estimate = 0 if tiling.schedule == "stepwise" else shared_memory(tiling, configuration.work)
    kernels = {id(kernel): kernel for kernel in _compiled_by(configuration)}
    return [_read(kernel, estimate) for kernel in kernels.values()]


if __name__ == "__main__":
    wanted = [Configuration(*fields) for fields in json.load(sys.stdin)]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        print(json.dumps(pool.map(_reports, wanted, chunksize=1)))
