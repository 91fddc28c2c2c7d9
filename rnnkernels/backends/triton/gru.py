"""GRU in Triton: the cell (equations G1-G5 and GB5-GB1 of :mod:`rnnkernels.backends.reference`), the kernels over it, launchers.

This file and lstm.py have the same sections in the same order: their difference is the difference between the cells.
D directions, R rows of all steps, N batch rows, H hidden units; gates r, z, n, and q, the hidden half of n. "The step before" is
the one computed before, in the order of the loop at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import DirectionWeights, split_directions, state_dtype
from ...precision import of_library_products
from ..reference import accepts_one_step
from .checks import check_backward, check_forward
from .plan import Tiling, Workload
from .sequence import (
    Steps,
    elementwise,
    matmul,
    project_input,
    run_in_tiles,
    stacked,
    sum_products,
    tiling_for,
    workload,
)
from .tiles import (
    GATE_SLOTS,
    accumulator,
    barrier,
    load_backward_weights,
    load_bias,
    load_forward_weights,
    load_rows,
    multiply_add,
    multiply_gate_gradient,
    multiply_hidden,
    no_step,
    sigmoid,
    split_gates,
    step_rows,
    sum_parts,
    tanh,
)

# --- the cell ------------------------------------------------------------------------------------------------------------


@triton.jit
def cell_forward(x_r, x_z, x_n, h_r, h_z, q, h):
    """G1-G5: the input's and the hidden state's halves of the preactivations, the state before -> r, z, n, h."""
    r = sigmoid(x_r + h_r)  # G1
    z = sigmoid(x_z + h_z)  # G2
    n = tanh(x_n + r * q)  # G4
    h = (1.0 - z) * n + z * h  # G5
    return r, z, n, h


@triton.jit
def cell_backward(d_h, r, z, n, q, h_before):
    """GB5-GB1: -> d(a_r), d(a_z), d(a_n), d(q), and d(h') but for the share that comes through W_hh."""
    d_n = d_h * (1.0 - z)  # GB5
    d_z = d_h * (h_before - n)
    d_an = d_n * (1.0 - n * n)  # GB4
    d_q = d_an * r
    d_r = d_an * q
    return d_r * r * (1.0 - r), d_z * z * (1.0 - z), d_an, d_q, d_h * z  # GB1-2


# --- forward: all steps in one launch ------------------------------------------------------------------------------------


@triton.jit
def load_preactivations(x_gates, begin, n, rows, units, H):
    """Step rows of W_ih x: three tiles [UNITS, ROWS], zero where no row is active."""
    address = x_gates + begin * 3 * H + (rows * 3 * H)[None, :] + units[:, None]
    mask = (rows < n)[None, :] & (units < H)[:, None]
    x_r = tl.load(address, mask=mask, other=0.0)
    x_z = tl.load(address + H, mask=mask, other=0.0)
    x_n = tl.load(address + 2 * H, mask=mask, other=0.0)
    return x_r, x_z, x_n


@triton.jit(do_not_specialize=["steps", "batch", "n_rows", "first_row_block"])
def forward_kernel(
    x_gates,  # (D, R, 3H) float32: W_ih x
    bias,  # (D, 4, H) float32: b_ir + b_hr, b_iz + b_hz, b_in, b_hn
    w_hh,  # (D, 3H, H)
    h0,  # (D, N, H)
    offsets,  # (T + 1) int64: the row where each step begins; not read unless PACKED
    output,  # (R, D * H)
    h_n,  # (D, N, H)
    gates,  # (D, R, 4, H), written if SAVE
    arrived,  # (row blocks, D) int32 zeros: the barriers' counters
    steps,
    batch,
    n_rows,  # R
    H,
    first_row_block,  # of this launch
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
    ALONE: tl.constexpr,  # one program has all units: h stays inside and no barrier is needed
    PACKED: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    CAN_TRAP: tl.constexpr,
):
    """Grid (unit blocks, row blocks, D). A program computes UNITS units of ROWS batch rows for all steps of one direction."""
    unit_block, row_block, direction = tl.program_id(0), first_row_block + tl.program_id(1), tl.program_id(2)
    n_unit_blocks, directions = tl.num_programs(0), tl.num_programs(2)
    units = unit_block * UNITS + tl.arange(0, UNITS)
    rows = row_block * ROWS + tl.arange(0, ROWS)
    present = (units < H)[:, None] & (rows < batch)[None, :]
    own = direction.to(tl.int64) * n_rows
    x_gates += own * 3 * H
    gates += own * 4 * H
    output += direction * H
    state_tile = (direction * batch + rows[None, :]) * H + units[:, None]
    arrived += row_block * directions + direction
    weights = load_forward_weights(
        w_hh + direction.to(tl.int64) * 3 * H * H, unit_block * UNITS, H, 3, UNITS, CHUNK, N_CHUNKS, SPLIT
    )

    b_r, b_z, b_n, b_q = load_bias(bias + direction * 4 * H, units, H)
    h = tl.load(h0 + state_tile, mask=present, other=0.0).to(tl.float32)
    t = direction * (steps - 1)
    begin, n = step_rows(offsets, t, steps, batch, PACKED)
    begin_before, n_before = no_step()
    x_r, x_z, x_n = load_preactivations(x_gates, begin, n, rows, units, H)
    for step in range(steps):
        # The next step's preactivations come from far; ask for them before waiting for h.
        t += 1 - 2 * direction
        begin_next, n_next = step_rows(offsets, t, steps, batch, PACKED)
        next_r, next_z, next_n = load_preactivations(x_gates, begin_next, n_next, rows, units, H)
        if ALONE:
            acc = accumulator(GATE_SLOTS * UNITS, ROWS, SPLIT)
            acc = multiply_add(weights[0], h.to(w_hh.dtype.element_ty), acc, SPLIT, PRECISION, UPCAST)
            h_r, h_z, q, _ = split_gates(sum_parts(acc, SPLIT), UNITS, SPLIT)
        else:
            if step > 0:
                barrier(arrived, step * n_unit_blocks, CAN_TRAP)
            h_r, h_z, q, _ = multiply_hidden(
                weights,
                output,
                h0 + direction * batch * H,
                directions * H,
                begin_before,
                n_before,
                n,
                rows,
                H,
                UNITS,
                CHUNK,
                N_CHUNKS,
                SPLIT,
                PRECISION,
                UPCAST,
            )
        q += b_q  # G3
        r, z, candidate, h_new = cell_forward(x_r + b_r, x_z + b_z, x_n + b_n, h_r, h_z, q, h)
        active = (rows < n)[None, :] & (units < H)[:, None]
        h = tl.where(active, h_new, h)
        tl.store(output + (begin + rows)[None, :] * directions * H + units[:, None], h, mask=active)
        if SAVE:
            saved = begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
            tl.store(gates + saved, r, mask=active)
            tl.store(gates + saved + H, z, mask=active)
            tl.store(gates + saved + 2 * H, candidate, mask=active)
            tl.store(gates + saved + 3 * H, q, mask=active)
        begin_before, n_before = begin, n
        begin, n = begin_next, n_next
        x_r, x_z, x_n = next_r, next_z, next_n
    tl.store(h_n + state_tile, h, mask=present)


# --- forward: one step ---------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_elements"])
def step_forward_kernel(
    x_gates,  # (n, 3H) in the state dtype: W_ih x
    bias,  # (4, H) in the state dtype: b_ir + b_hr, b_iz + b_hz, b_in, b_hn
    h_gates,  # (n, 3H) in the state dtype: W_hh h'
    h_state,  # (n, H) in the state dtype: h' in, h out
    output,  # (n, H) h again, rows output_stride elements apart
    gates,  # (n, 4, H), written if SAVE
    n_elements,  # n * H
    H,
    output_stride,
    SAVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n_elements
    row, unit = index // H, index % H
    gate = row * 3 * H + unit
    h_r = tl.load(h_gates + gate, mask=mask, other=0.0)
    h_z = tl.load(h_gates + gate + H, mask=mask, other=0.0)
    q = tl.load(h_gates + gate + 2 * H, mask=mask, other=0.0) + tl.load(bias + 3 * H + unit, mask=mask, other=0.0)  # G3
    x_r = tl.load(x_gates + gate, mask=mask, other=0.0) + tl.load(bias + unit, mask=mask, other=0.0)
    x_z = tl.load(x_gates + gate + H, mask=mask, other=0.0) + tl.load(bias + H + unit, mask=mask, other=0.0)
    x_n = tl.load(x_gates + gate + 2 * H, mask=mask, other=0.0) + tl.load(bias + 2 * H + unit, mask=mask, other=0.0)
    h_before = tl.load(h_state + index, mask=mask, other=0.0)
    r, z, candidate, h = cell_forward(x_r, x_z, x_n, h_r, h_z, q, h_before)
    tl.store(h_state + index, h, mask=mask)
    tl.store(output + row * output_stride + unit, h, mask=mask)
    if SAVE:
        saved = row * 4 * H + unit
        tl.store(gates + saved, r, mask=mask)
        tl.store(gates + saved + H, z, mask=mask)
        tl.store(gates + saved + 2 * H, candidate, mask=mask)
        tl.store(gates + saved + 3 * H, q, mask=mask)


# --- forward: launchers --------------------------------------------------------------------------------------------------


@accepts_one_step
def forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    bidirectional: bool,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One GRU layer; the operator's contract is in :mod:`rnnkernels.ops`."""
    check_forward("gru", input, batch_sizes, (h0,), weights, has_biases, False, bidirectional)
    directions = split_directions(weights, has_biases, False, bidirectional)
    h0 = h0.contiguous()
    D, N, H = h0.shape
    steps = Steps(input, batch_sizes, N)
    output = input.new_empty(*input.shape[:-1], D * H)
    gates = input.new_empty((D, *input.shape[:-1], 4, H) if save_for_backward else 0)
    if steps.n_rows == 0 or H == 0:
        return output, h0.clone(), gates
    with of_library_products(input):
        x_gates = project_input(input.reshape(steps.n_rows, -1), [w.w_ih for w in directions])
        bias = _bias(directions, H, state_dtype(input.dtype))
        work = workload("gru", input, steps, H, D, projected=False, backward=False)
        tiling = tiling_for(work, input)
        if tiling.schedule == "stepwise":
            h_n = _forward_stepwise(x_gates, bias, directions, h0, steps, output, gates)
        else:
            h_n = _forward_in_tiles(x_gates, bias, directions, h0, steps, output, gates, tiling, work)
    return output, h_n, gates


def _bias(directions: list[DirectionWeights], H: int, dtype: torch.dtype) -> Tensor:
    """(D, 4, H) what G1, G2, G4 and G3 add."""
    result = directions[0].w_hh.new_zeros(len(directions), 4, H, dtype=dtype)
    for own, w in zip(result, directions, strict=True):
        if w.b_ih is not None and w.b_hh is not None:
            torch.add(w.b_ih[: 2 * H].view(2, H).to(dtype), w.b_hh[: 2 * H].view(2, H), out=own[:2])
            own[2] = w.b_ih[2 * H :]
            own[3] = w.b_hh[2 * H :]
    return result


def _forward_in_tiles(
    x_gates: Tensor,
    bias: Tensor,
    directions: list[DirectionWeights],
    h0: Tensor,
    steps: Steps,
    output: Tensor,
    gates: Tensor,
    tiling: Tiling,
    work: Workload,
) -> Tensor:
    row_blocks = tiling.n_row_blocks(steps.batch)
    arrived = torch.zeros(row_blocks, work.directions, dtype=torch.int32, device=output.device)
    offsets = steps.offsets(output.device)
    h_n = torch.empty_like(h0)
    arguments = {
        "x_gates": x_gates,
        "bias": bias,
        "w_hh": stacked([w.w_hh for w in directions]),
        "h0": h0,
        "offsets": arrived if offsets is None else offsets,
        "output": output,
        "h_n": h_n,
        "gates": gates,
        "arrived": arrived,
        "steps": len(steps),
        "batch": steps.batch,
        "n_rows": steps.n_rows,
        "H": work.hidden_size,
        "PACKED": steps.packed,
        "SAVE": gates.numel() > 0,
    }
    run_in_tiles(forward_kernel, tiling, work, arguments, row_blocks)
    return h_n


def _forward_stepwise(
    x_gates: Tensor,
    bias: Tensor,
    directions: list[DirectionWeights],
    h0: Tensor,
    steps: Steps,
    output: Tensor,
    gates: Tensor,
) -> Tensor:
    H, save = h0.size(-1), gates.numel() > 0
    output = output.view(steps.n_rows, -1)
    h_n = torch.empty_like(h0)
    for d, w in enumerate(directions):
        h = h0[d].to(state_dtype(h0.dtype), copy=True)
        own_gates = gates[d].view(-1, 4, H) if save else gates
        for t in steps.order(d):
            n, rows = steps.sizes[t], slice(steps.begins[t], steps.begins[t] + steps.sizes[t])
            arguments = {
                "x_gates": x_gates[d, rows],
                "bias": bias[d],
                "h_gates": matmul(h[:n].to(h0.dtype), w.w_hh.t()),
                "h_state": h,
                "output": output[rows, d * H : (d + 1) * H],
                "gates": own_gates[rows],
                "H": H,
                "output_stride": output.stride(0),
                "SAVE": save,
            }
            elementwise(step_forward_kernel, n * H, arguments)
        h_n[d] = h
    return h_n


# --- backward: all steps in one launch -----------------------------------------------------------------------------------


@triton.jit
def load_saved(gates, begin, n, rows, units, H):
    """One step's saved r, z, n, q: four tiles [UNITS, ROWS] in float32, zero where no row is active."""
    address = gates + begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
    mask = (rows < n)[None, :] & (units < H)[:, None]
    r = tl.load(address, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(address + H, mask=mask, other=0.0).to(tl.float32)
    candidate = tl.load(address + 2 * H, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(address + 3 * H, mask=mask, other=0.0).to(tl.float32)
    return r, z, candidate, q


@triton.jit(do_not_specialize=["steps", "batch", "n_rows", "first_row_block"])
def backward_kernel(
    d_output,  # (R, D * H), not read unless HAS_D_OUTPUT
    d_h_n,  # (D, N, H)
    w_hh,  # (D, 3H, H)
    gates,  # (D, R, 4, H)
    output,  # (R, D * H)
    h0,  # (D, N, H)
    offsets,  # (T + 1) int64: the row where each step begins; not read unless PACKED
    d_gates,  # (D, R, 4, H): d(a_r), d(a_z), d(a_n), d(q)
    d_h0,  # (D, N, H)
    d_bias,  # (row blocks, D, 4, H) float32: each row block's sum of d_gates over its rows
    arrived,  # (row blocks, D) int32 zeros: the barriers' counters
    steps,
    batch,
    n_rows,  # R
    H,
    first_row_block,  # of this launch
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
    ALONE: tl.constexpr,  # one program has all units: d(u) stays inside and no barrier is needed
    PACKED: tl.constexpr,
    HAS_D_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    CAN_TRAP: tl.constexpr,
):
    """Grid (unit blocks, row blocks, D). A program goes back through all steps for UNITS units of ROWS batch rows."""
    unit_block, row_block, direction = tl.program_id(0), first_row_block + tl.program_id(1), tl.program_id(2)
    n_unit_blocks, directions = tl.num_programs(0), tl.num_programs(2)
    units = unit_block * UNITS + tl.arange(0, UNITS)
    rows = row_block * ROWS + tl.arange(0, ROWS)
    present = (units < H)[:, None] & (rows < batch)[None, :]
    own = direction.to(tl.int64) * n_rows
    gates += own * 4 * H
    d_gates += own * 4 * H
    output += direction * H
    d_output += direction * H
    state_tile = (direction * batch + rows[None, :]) * H + units[:, None]
    arrived += row_block * directions + direction
    dtype: tl.constexpr = w_hh.dtype.element_ty
    weights = load_backward_weights(w_hh + direction.to(tl.int64) * 3 * H * H, units, H, 3, CHUNK, N_CHUNKS, SPLIT)

    d_h = tl.load(d_h_n + state_tile, mask=present, other=0.0).to(tl.float32)
    h_initial = tl.load(h0 + state_tile, mask=present, other=0.0).to(tl.float32)
    sum_r = tl.zeros((UNITS, ROWS), tl.float32)
    sum_z, sum_n, sum_q = sum_r, sum_r, sum_r
    t = (1 - direction) * (steps - 1)
    begin, n = step_rows(offsets, t, steps, batch, PACKED)
    begin_before, n_before = no_step()
    r, z, candidate, q = load_saved(gates, begin, n, rows, units, H)
    d_y = tl.zeros((UNITS, ROWS), tl.float32)
    if HAS_D_OUTPUT:
        d_y = load_rows(d_output, directions * H, begin, n, rows, units, H)
    # Gradients of h come one step late, when all programs have written d(u): one turn more, with no active row, brings h0's.
    for step in range(steps if ALONE else steps + 1):
        t += 2 * direction - 1
        begin_next, n_next = step_rows(offsets, t, steps, batch, PACKED)
        next_r, next_z, next_candidate, next_q = load_saved(gates, begin_next, n_next, rows, units, H)
        next_h = load_rows(output, directions * H, begin_next, n_next, rows, units, H)
        next_d_y = d_y
        if HAS_D_OUTPUT:
            next_d_y = load_rows(d_output, directions * H, begin_next, n_next, rows, units, H)
        if not ALONE:
            if step > 0:
                barrier(arrived, step * n_unit_blocks, CAN_TRAP)
            acc = accumulator(UNITS, ROWS, SPLIT)
            for gate in tl.static_range(3):
                acc = multiply_gate_gradient(
                    acc,
                    weights,
                    gate,
                    d_gates + (gate if gate < 2 else 3) * H,  # d(u): r, z, q
                    4 * H,
                    begin_before,
                    n_before,
                    rows,
                    H,
                    CHUNK,
                    N_CHUNKS,
                    SPLIT,
                    PRECISION,
                    UPCAST,
                )
            d_h += sum_parts(acc, SPLIT)  # GB3
        active = (rows < n)[None, :] & (units < H)[:, None]
        h_before = tl.where((rows < n_next)[None, :], next_h, h_initial)
        d_r, d_z, d_n, d_q, d_h_direct = cell_backward(d_h + d_y, r, z, candidate, q, h_before)
        d_h = tl.where(active, d_h_direct, d_h)
        d_r = tl.where(active, d_r, 0.0)
        d_z = tl.where(active, d_z, 0.0)
        d_n = tl.where(active, d_n, 0.0)
        d_q = tl.where(active, d_q, 0.0)
        sum_r += d_r
        sum_z += d_z
        sum_n += d_n
        sum_q += d_q
        address = d_gates + begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
        tl.store(address, d_r, mask=active)
        tl.store(address + H, d_z, mask=active)
        tl.store(address + 2 * H, d_n, mask=active)
        tl.store(address + 3 * H, d_q, mask=active)
        if ALONE:
            acc = accumulator(UNITS, ROWS, SPLIT)
            acc = multiply_add(weights[0], d_r.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            acc = multiply_add(weights[1], d_z.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            acc = multiply_add(weights[2], d_q.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            d_h += sum_parts(acc, SPLIT)  # GB3
        begin_before, n_before = begin, n
        begin, n = begin_next, n_next
        r, z, candidate, q, d_y = next_r, next_z, next_candidate, next_q, next_d_y
    tl.store(d_h0 + state_tile, d_h, mask=present)
    bias = d_bias + (row_block * directions + direction) * 4 * H + units
    tl.store(bias, tl.sum(sum_r, 1), mask=units < H)
    tl.store(bias + H, tl.sum(sum_z, 1), mask=units < H)
    tl.store(bias + 2 * H, tl.sum(sum_n, 1), mask=units < H)
    tl.store(bias + 3 * H, tl.sum(sum_q, 1), mask=units < H)


# --- backward: one step --------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_elements"])
def step_backward_kernel(
    d_h,  # (n, H) in the state dtype: d(h) from the step after in, d(h') but for the share through W_hh out
    d_output,  # (n, H), rows output_stride elements apart, not read unless HAS_D_OUTPUT
    gates,  # (n, 4, H)
    h_before,  # (n, H)
    d_gates,  # (n, 4, H): d(a_r), d(a_z), d(a_n), d(q)
    n_elements,  # n * H
    H,
    output_stride,
    HAS_D_OUTPUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n_elements
    row, unit = index // H, index % H
    gate = row * 4 * H + unit
    d_y = tl.load(d_h + index, mask=mask, other=0.0)
    r = tl.load(gates + gate, mask=mask, other=0.0).to(d_y.dtype)
    z = tl.load(gates + gate + H, mask=mask, other=0.0).to(d_y.dtype)
    candidate = tl.load(gates + gate + 2 * H, mask=mask, other=0.0).to(d_y.dtype)
    q = tl.load(gates + gate + 3 * H, mask=mask, other=0.0).to(d_y.dtype)
    if HAS_D_OUTPUT:
        d_y += tl.load(d_output + row * output_stride + unit, mask=mask, other=0.0).to(d_y.dtype)
    h_prev = tl.load(h_before + index, mask=mask, other=0.0).to(d_y.dtype)
    d_r, d_z, d_n, d_q, d_h_direct = cell_backward(d_y, r, z, candidate, q, h_prev)
    tl.store(d_gates + gate, d_r, mask=mask)
    tl.store(d_gates + gate + H, d_z, mask=mask)
    tl.store(d_gates + gate + 2 * H, d_n, mask=mask)
    tl.store(d_gates + gate + 3 * H, d_q, mask=mask)
    tl.store(d_h + index, d_h_direct, mask=mask)


# --- backward: launchers -------------------------------------------------------------------------------------------------


@accepts_one_step
def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weights: Sequence[Tensor],
    output: Tensor,
    gates: Tensor,
    has_biases: bool,
    bidirectional: bool,
    needs_input_grad: bool,
    needs_weight_grads: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of :func:`forward`."""
    check_forward("gru", input, batch_sizes, (h0,), weights, has_biases, False, bidirectional)
    check_backward("gru", (grad_output, grad_h_n), input, (h0,), output, (gates,), h0.size(-1))
    directions = split_directions(weights, has_biases, False, bidirectional)
    h0, output, gates = (t.contiguous() for t in (h0, output, gates))  # vmap leaves them in any layout
    D, N, H = h0.shape
    steps = Steps(input, batch_sizes, N)
    d_h_n = torch.zeros_like(h0) if grad_h_n is None else grad_h_n.contiguous()
    d_output = None if grad_output is None else grad_output.reshape(steps.n_rows, D * H).contiguous()
    if steps.n_rows == 0 or H == 0:
        d_weights = [torch.zeros_like(w) for w in weights if needs_weight_grads]
        return input.new_zeros(input.shape if needs_input_grad else 0), d_h_n.clone(), d_weights
    d_gates = input.new_empty(D, steps.n_rows, 4, H)
    with of_library_products(input):
        work = workload("gru", input, steps, H, D, projected=False, backward=True)
        tiling = tiling_for(work, input)
        if tiling.schedule == "stepwise":
            d_h0 = _backward_stepwise(d_output, d_h_n, directions, gates, output, h0, steps, d_gates)
            d_bias = d_gates.sum(1, dtype=state_dtype(input.dtype)) if needs_weight_grads else d_gates
        else:
            d_h0, d_bias = _backward_in_tiles(d_output, d_h_n, directions, gates, output, h0, steps, d_gates, tiling, work)
        d_input, d_weights = input.new_empty(0), []
        d_a = d_gates.view(D, steps.n_rows, 4 * H)[:, :, : 3 * H]
        if needs_input_grad:
            d_input = sum_products(d_a, [w.w_ih for w in directions]).view(input.shape)  # GB3
        for d in range(D if needs_weight_grads else 0):
            h_before = steps.before(output.view(steps.n_rows, -1)[:, d * H : (d + 1) * H], h0[d], d)
            d_rz, d_q = d_a[d, :, : 2 * H], d_gates[d].view(-1, 4, H)[:, 3]
            d_weights += [d_a[d].t() @ input.reshape(steps.n_rows, -1), torch.cat((d_rz.t() @ h_before, d_q.t() @ h_before))]
            if has_biases:
                own = d_bias[d].to(input.dtype)
                d_weights += [torch.cat((own[0], own[1], own[2])), torch.cat((own[0], own[1], own[3]))]
    return d_input, d_h0, d_weights


def _backward_in_tiles(
    d_output: Tensor | None,
    d_h_n: Tensor,
    directions: list[DirectionWeights],
    gates: Tensor,
    output: Tensor,
    h0: Tensor,
    steps: Steps,
    d_gates: Tensor,
    tiling: Tiling,
    work: Workload,
) -> tuple[Tensor, Tensor]:
    row_blocks = tiling.n_row_blocks(steps.batch)
    arrived = torch.zeros(row_blocks, work.directions, dtype=torch.int32, device=gates.device)
    offsets = steps.offsets(gates.device)
    d_h0 = torch.empty_like(d_h_n)
    d_bias = gates.new_empty(row_blocks, work.directions, 4, work.hidden_size, dtype=state_dtype(gates.dtype))
    arguments = {
        "d_output": gates if d_output is None else d_output,
        "d_h_n": d_h_n,
        "w_hh": stacked([w.w_hh for w in directions]),
        "gates": gates,
        "output": output,
        "h0": h0,
        "offsets": arrived if offsets is None else offsets,
        "d_gates": d_gates,
        "d_h0": d_h0,
        "d_bias": d_bias,
        "arrived": arrived,
        "steps": len(steps),
        "batch": steps.batch,
        "n_rows": steps.n_rows,
        "H": work.hidden_size,
        "PACKED": steps.packed,
        "HAS_D_OUTPUT": d_output is not None,
    }
    run_in_tiles(backward_kernel, tiling, work, arguments, row_blocks)
    return d_h0, d_bias.sum(0)


def _backward_stepwise(
    d_output: Tensor | None,
    d_h_n: Tensor,
    directions: list[DirectionWeights],
    gates: Tensor,
    output: Tensor,
    h0: Tensor,
    steps: Steps,
    d_gates: Tensor,
) -> Tensor:
    H, dtype = h0.size(-1), state_dtype(gates.dtype)
    d_h0 = torch.empty_like(d_h_n)
    for d, w in enumerate(directions):
        d_h = d_h_n[d].to(dtype, copy=True)
        own_gates = gates[d].view(-1, 4, H)
        h_before = steps.before(output.view(steps.n_rows, -1)[:, d * H : (d + 1) * H], h0[d], d)
        for t in reversed(steps.order(d)):
            n, rows = steps.sizes[t], slice(steps.begins[t], steps.begins[t] + steps.sizes[t])
            d_y = None if d_output is None else d_output[rows, d * H : (d + 1) * H]
            own_d_gates = d_gates[d].view(-1, 4, H)[rows]
            arguments = {
                "d_h": d_h,
                "d_output": d_h if d_y is None else d_y,
                "gates": own_gates[rows],
                "h_before": h_before[rows],
                "d_gates": own_d_gates,
                "H": H,
                "output_stride": 0 if d_y is None else d_y.stride(0),
                "HAS_D_OUTPUT": d_y is not None,
            }
            elementwise(step_backward_kernel, n * H, arguments)
            d_h[:n] += matmul(own_d_gates[:, :2].flatten(1), w.w_hh[: 2 * H])  # GB3
            d_h[:n] += matmul(own_d_gates[:, 3], w.w_hh[2 * H :])
        d_h0[d] = d_h
    return d_h0
