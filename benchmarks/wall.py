"""What the machine can do at most, measured in the run whose figures are held against it, and what of it a case needs.

Four limits, on the CPU by the loops of csrc/cpu/wall_probes.cpp (in ``rnnkernels._C``), which do nothing else:

=============  ===========================================================================================================
flops          operations per second of multiply-adds on registers, one thread and all of the run's; of bfloat16 dot products
               where the processor has them
read           bytes per second of reading the same memory again and again, by its size: what a step's weights cost that must
               be read anew at every step
step           seconds of one step whose matrix product is a single multiply-add: the equations of one vector of units, each
               step waiting for the one before. No step of any size is shorter.
handover       seconds until one thread sees what another wrote: what every step costs at least that threads share
=============  ===========================================================================================================

On a GPU only ``flops`` is measured, as a large product of torch's library.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from . import flops
from .cases import Case

#: Footprints whose reading is timed, in bytes per thread: from the first-level cache to memory.
_FOOTPRINTS = tuple(2**n for n in range(14, 28))
_SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def measure(threads: int, device: str = "cpu", seconds: float = 0.2) -> dict[str, Any]:
    """The limits, in operations, bytes and seconds; ``{"missing": reason}`` where they cannot be measured."""
    if device != "cpu":
        return _measure_gpu()
    try:
        native = importlib.import_module("rnnkernels._C")
    except ImportError as error:
        return {"missing": f"rnnkernels._C does not load: {error}"}
    counts = sorted({1, threads})
    try:
        return {
            "source": f"multiply-adds on registers, {native.build_info()['cpu_isa']}",
            "float32_flops": {str(n): native.multiply_add_rate(n, seconds) for n in counts},
            "bfloat16_flops": {str(n): native.bfloat16_dot_rate(n, seconds) for n in counts},
            "read_bytes_per_s": {
                str(n): [[n * size, native.read_rate(n * size, n, seconds / 4)] for size in _FOOTPRINTS] for n in counts
            },
            "step_s": {cell: native.step_latency(cell, seconds / 2) for cell in flops.GATES},
            "handover_s": native.handover_latency(seconds / 2) if threads > 1 else None,
        }
    except ValueError as error:  # more threads than processors
        return {"missing": str(error)}


def rate(case: Case, wall: dict[str, Any], threads: int, seconds: float = 0.05) -> float | None:
    """Operations per second that bound ``case``, measured now: clocks change, and with them the wall. None if ``wall`` was not
    measured, or the dtype's was not."""
    if "missing" in wall or case.dtype not in ("float32", "bfloat16"):
        return None
    if "step_s" not in wall:  # a GPU's: seconds a measurement, so once a run
        return wall[f"{case.dtype}_flops"]["1"]
    native = importlib.import_module("rnnkernels._C")
    narrow = native.bfloat16_dot_rate(threads, seconds) if case.dtype == "bfloat16" else None
    return narrow or native.multiply_add_rate(threads, seconds)  # without dot products bfloat16 is computed as float32


def share(row: dict[str, Any], provider: str) -> float | None:
    """The share of the wall that a provider reaches in a result's row, or None if it is unknown. 1 is the wall."""
    entry, most = row["results"].get(provider, {}), row.get("wall_flops")
    return row["operations"] / entry["median_s"] / most if most and "median_s" in entry else None


def bounds(case: Case, row: dict[str, Any], wall: dict[str, Any], threads: int) -> dict[str, float]:
    """The seconds no implementation can be below, by what sets them. They overlap: the largest is the bound.

    ``products`` take the wall's operations; ``weights`` are read at every step, from wherever they fit, unless there are so few
    that they stay in registers; ``steps`` wait for each other, once a layer (both directions can run at once), in backward
    as in forward.
    """
    if not row.get("wall_flops") or "step_s" not in wall:
        return {}
    ways = {"training": 2, "backward": 1}.get(case.mode, 1)
    directions = 2 if case.bidirectional else 1
    size = flops.recurrent_weights(case) * _SIZES[case.dtype]
    # With several layers or directions at work each reads its own.
    reads = case.T * ways * case.num_layers * directions
    return {
        "products": row["operations"] / row["wall_flops"],
        "weights": reads * size / read_rate(wall, threads, size),
        "steps": case.T * ways * case.num_layers * wall["step_s"][case.cell],
    }


def read_rate(wall: dict[str, Any], threads: int, size: int) -> float:
    """Bytes per second at which ``size`` bytes are read again and again: that of the next larger footprint measured."""
    rates = wall["read_bytes_per_s"][str(threads)]
    return next((rate for footprint, rate in rates if footprint >= size), rates[-1][1])


def describe(wall: dict[str, Any]) -> str:
    """The limits in one paragraph."""
    if "missing" in wall:
        return f"The machine's limits were not measured: {wall['missing']}."
    parts = [f"{_giga(rate)} GFLOP/s on {_threads(n)}" for n, rate in wall["float32_flops"].items()]
    text = f"The wall ({wall['source']}): float32 " + ", ".join(parts)
    narrow = [f"{_giga(rate)} GFLOP/s on {_threads(n)}" for n, rate in wall["bfloat16_flops"].items() if rate]
    text += "; bfloat16 " + (", ".join(narrow) if narrow else "dot products are not among this processor's instructions")
    if "step_s" not in wall:
        return text + "."
    text += "; a serial step " + ", ".join(f"{1e9 * s:.0f} ns ({cell.upper()})" for cell, s in wall["step_s"].items())
    if wall["handover_s"]:
        text += f"; handing over to another thread {1e9 * wall['handover_s']:.0f} ns"
    return text + "."


def _measure_gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"missing": "no GPU is visible"}
    from triton.testing import do_bench

    def rate(dtype: torch.dtype) -> float:
        n = 8192
        a = torch.randn(n, n, device="cuda").to(dtype)
        return 2 * n**3 / (do_bench(lambda: a @ a, return_mode="min") * 1e-3)

    return {
        "source": f"torch's own product of two 8192 x 8192 matrices, {torch.get_float32_matmul_precision()} float32 precision",
        "float32_flops": {"1": rate(torch.float32)},
        "bfloat16_flops": {"1": rate(torch.bfloat16)},
    }


def _giga(rate: float) -> str:
    return f"{rate * 1e-9:.0f}"


def _threads(count: str) -> str:
    return f"{count} thread{'s' * (count != '1')}"
