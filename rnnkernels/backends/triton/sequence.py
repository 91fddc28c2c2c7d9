"""What both cells' launchers share: where rows lie, products of all steps at once, one place for launches and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ...layout import state_dtype
from ...precision import allows_tf32
from . import interpreted, tuning
from .plan import Device, Tiling, Workload

#: Whether kernels run in Triton's interpreter, as the variable stood when Triton was imported.
INTERPRETED = interpreted()

#: The interpreter runs programs one after another: none may wait for another.
INTERPRETER = Device(processors=0, shared_memory=1 << 30)


class Steps:
    """Where the rows of each step lie in the data of a layer, dense (T, N, ·) or packed (R, ·)."""

    def __init__(self, input: Tensor, batch_sizes: Tensor | None, batch: int) -> None:
        self.batch = batch
        self.packed = batch_sizes is not None
        if batch_sizes is None:
            self.sizes = [batch] * input.size(0)
            self.begins = range(0, batch * input.size(0), batch) if batch else [0] * input.size(0)
            self.n_rows = batch * input.size(0)
        else:
            self.sizes = batch_sizes.tolist()
            self.n_rows = input.size(0)
            self._sizes, self._ends = batch_sizes, batch_sizes.cumsum(0)
            self._begins = self._ends - batch_sizes
            self.begins = self._begins.tolist()

    def __len__(self) -> int:
        return len(self.sizes)

    def order(self, direction: int) -> range:
        """The steps as a direction's forward takes them."""
        return range(len(self)) if direction == 0 else range(len(self) - 1, -1, -1)

    def offsets(self, device: torch.device) -> Tensor | None:
        """(T + 1) the row where each step begins, on the device; None if dense."""
        if not self.packed:
            return None
        return torch.cat((self._ends.new_zeros(1), self._ends)).to(device)

    def before(self, values: Tensor, initial: Tensor, direction: int) -> Tensor:
        """(R, W) the state each row's step began with: ``values`` (R, W) of the step before, or ``initial`` (N, W)."""
        if not self.packed:
            ordered = values.view(len(self), self.batch, -1)
            shifted = (initial[None], ordered[:-1]) if direction == 0 else (ordered[1:], initial[None])
            return torch.cat(shifted).flatten(0, 1)
        sizes, begins = self._sizes, self._begins
        step = torch.arange(len(self)).repeat_interleave(sizes)  # of each row
        row = torch.arange(self.n_rows) - begins[step]  # of the batch
        before = step - 1 if direction == 0 else step + 1
        inside = (before >= 0) & (before < len(self))
        before = before.clamp(0, len(self) - 1)
        index = torch.where(inside & (row < sizes[before]), begins[before] + row, self.n_rows + row)
        return torch.cat((values, initial)).index_select(0, index.to(values.device))


# --- products ------------------------------------------------------------------------------------------------------------


def precision(dtype: torch.dtype) -> str:
    """How recurrent products of a dtype are computed. float32 follows torch's switch (:mod:`rnnkernels.precision`): TF32 where it
    allows it, else three TF32 products, which are as exact as one in float32 and run on the same units."""
    if dtype != torch.float32:
        return "ieee"
    if torch.version.hip is not None:
        return "ieee"  # AMD's matrix units multiply float32
    return "tf32" if allows_tf32() else "tf32x3"


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in the state dtype: half types are multiplied as they are and summed, and left, in float32."""
    dtype = state_dtype(a.dtype)
    if a.dtype == dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype, out=out)
    return torch.mm(a.to(dtype), b.to(dtype), out=out)


def project_input(rows: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(R, I) times each direction's w_ih (K, I) -> (D, R, K) in the state dtype: gates that are far from zero would lose much if
    their sums were rounded to a half type."""
    result = rows.new_empty(len(weights), rows.size(0), weights[0].size(0), dtype=state_dtype(rows.dtype))
    for out, weight in zip(result, weights, strict=True):
        matmul(rows, weight.t(), out)
    return result


def sum_products(d_gates: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The sum over directions of d_gates[d] (R, K) times weights[d] (K, W) -> (R, W)."""
    result = d_gates[0] @ weights[0]
    for own, weight in zip(d_gates[1:], weights[1:], strict=True):
        result = torch.addmm(result, own, weight)
    return result


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(D, ...) from one tensor per direction, without a copy where there is one."""
    return tensors[0][None].contiguous() if len(tensors) == 1 else torch.stack(list(tensors))


# --- plans ---------------------------------------------------------------------------------------------------------------


@cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    shared_memory = getattr(properties, "shared_memory_per_block_optin", 64 * 1024)  # AMD names none; it has 64 KiB
    return Device(properties.multi_processor_count, shared_memory)


def device_of(tensor: Tensor) -> Device:
    return INTERPRETER if INTERPRETED else _device(tensor.device.index)


def workload(cell: str, input: Tensor, steps: Steps, H: int, D: int, projected: bool, backward: bool) -> Workload:
    """What a plan has to know of one pass of a layer with H units and D directions."""
    size, exactness = input.element_size(), precision(input.dtype)
    return Workload(cell, backward, H, steps.batch, D, size, exactness, projected, one_step=len(steps) == 1)


def tiling_for(work: Workload, tensor: Tensor) -> Tiling:
    return tuning.tiling_for(work, device_of(tensor), tensor)


# --- launches ------------------------------------------------------------------------------------------------------------


def start(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Hand one launch to Triton. Apart from :func:`launch`, so that tests can run or record launches in other ways."""
    kernel[grid](**arguments, **options)


def launch(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], **options: Any) -> None:
    """Start ``kernel`` on the device and stream of its tensors. Triton's errors are raised with kernel and shape named."""
    tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
    try:
        with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
            start(kernel, grid, arguments, {} if INTERPRETED else options)
    except (RuntimeError, triton.runtime.errors.TritonError, triton.compiler.CompilationError) as error:
        shape = ", ".join(f"{name}={value}" for name, value in arguments.items() if not isinstance(value, Tensor))
        raise RuntimeError(f"the Triton kernel {kernel.__name__} failed, grid {grid}, {shape}: {error}") from error


def run_in_tiles(kernel: Any, tiling: Tiling, work: Workload, arguments: dict[str, Any], row_blocks: int) -> None:
    """Launch a sequence kernel over all batch rows: at once, or as many row blocks at a time as can be resident together."""
    at_once = tiling.row_blocks_at_once(work, device_of(arguments["w_hh"]))
    shape = {
        "UNITS": tiling.units,
        "ROWS": tiling.rows,
        "CHUNK": tiling.chunk,
        "N_CHUNKS": tiling.n_chunks(work.hidden_size),
        "SPLIT": tiling.split,
        "ALONE": tiling.alone,
        "PRECISION": work.precision,
        "UPCAST": INTERPRETED and arguments["w_hh"].dtype == torch.bfloat16,
        "CAN_TRAP": not INTERPRETED and torch.version.hip is None,
    }
    options = {"num_warps": tiling.num_warps, "num_stages": 1, "enable_fp_fusion": True}
    if not tiling.alone:
        options["launch_cooperative_grid"] = True
    if torch.version.hip is None and (tiling.alone or not work.backward):
        # Left alone, ptxas may spill a few registers to let two programs share a processor, whose shared memory is too small.
        # In a grid's backward it does not, and with more registers than it asks for it spills what it hoists.
        options["maxnreg"] = 255
    for first in range(0, row_blocks, at_once):
        grid = (tiling.n_unit_blocks(work.hidden_size), min(at_once, row_blocks - first), work.directions)
        launch(kernel, grid, arguments | {"first_row_block": first} | shape, **options)


def elementwise(kernel: Any, n: int, arguments: dict[str, Any]) -> None:
    """Launch a pointwise kernel over ``n`` elements, BLOCK to a program."""
    block = 512  # four elements a thread: with eight, the LSTM's backward in float64 has not enough registers
    if n:
        launch(kernel, (-(-n // block), 1, 1), arguments | {"n_elements": n, "BLOCK": block}, num_warps=4, enable_fp_fusion=True)
