"""LSTM in Triton: the cell (equations L2-L7 and LB7-LB2 of :mod:`rnnkernels.backends.reference`), the kernels over it, launchers.

This file and gru.py have the same sections in the same order: their difference is the difference between the cells.
D directions, R rows of all steps, N batch rows, H hidden units; gates i, f, g, o. "The step before" is the one computed before,
in the order of the loop at hand.
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
def cell_forward(a_i, a_f, a_g, a_o, c):
    """L2-L7: preactivations and the cell state before -> i, f, g, o, c, h."""
    i = sigmoid(a_i)  # L2
    f = sigmoid(a_f)  # L3
    g = tanh(a_g)  # L4
    o = sigmoid(a_o)  # L5
    c = f * c + i * g  # L6
    h = o * tanh(c)  # L7
    return i, f, g, o, c, h


@triton.jit
def cell_backward(d_h, d_c, i, f, g, o, c, c_before):
    """LB7-LB2: -> d(a_i), d(a_f), d(a_g), d(a_o), d(c')."""
    tanh_c = tanh(c)
    d_o = d_h * tanh_c  # LB7
    d_c += d_h * o * (1.0 - tanh_c * tanh_c)
    d_i = d_c * g  # LB6
    d_f = d_c * c_before
    d_g = d_c * i
    return d_i * i * (1.0 - i), d_f * f * (1.0 - f), d_g * (1.0 - g * g), d_o * o * (1.0 - o), d_c * f  # LB2-5


# --- forward: all steps in one launch ------------------------------------------------------------------------------------


@triton.jit
def load_preactivations(x_gates, begin, n, rows, units, H):
    """Step rows of W_ih x: four tiles [UNITS, ROWS], zero where no row is active."""
    address = x_gates + begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
    mask = (rows < n)[None, :] & (units < H)[:, None]
    x_i = tl.load(address, mask=mask, other=0.0)
    x_f = tl.load(address + H, mask=mask, other=0.0)
    x_g = tl.load(address + 2 * H, mask=mask, other=0.0)
    x_o = tl.load(address + 3 * H, mask=mask, other=0.0)
    return x_i, x_f, x_g, x_o


@triton.jit(do_not_specialize=["steps", "batch", "n_rows", "first_row_block"])
def forward_kernel(
    x_gates,  # (D, R, 4H) float32: W_ih x
    bias,  # (D, 4, H) float32: b_ih + b_hh
    w_hh,  # (D, 4H, H)
    h0,  # (D, N, H)
    c0,  # (D, N, H)
    offsets,  # (T + 1) int64: the row where each step begins; not read unless PACKED
    output,  # (R, D * H)
    h_n,  # (D, N, H)
    c_n,  # (D, N, H)
    gates,  # (D, R, 4, H), written if SAVE
    cells,  # (D, R, H) float32, written if SAVE
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
    x_gates += own * 4 * H
    gates += own * 4 * H
    cells += own * H
    output += direction * H
    state_tile = (direction * batch + rows[None, :]) * H + units[:, None]
    arrived += row_block * directions + direction
    weights = load_forward_weights(
        w_hh + direction.to(tl.int64) * 4 * H * H, unit_block * UNITS, H, 4, UNITS, CHUNK, N_CHUNKS, SPLIT
    )

    b_i, b_f, b_g, b_o = load_bias(bias + direction * 4 * H, units, H)
    h = tl.load(h0 + state_tile, mask=present, other=0.0).to(tl.float32)
    c = tl.load(c0 + state_tile, mask=present, other=0.0).to(tl.float32)
    t = direction * (steps - 1)
    begin, n = step_rows(offsets, t, steps, batch, PACKED)
    begin_before, n_before = no_step()
    x_i, x_f, x_g, x_o = load_preactivations(x_gates, begin, n, rows, units, H)
    for step in range(steps):
        # The next step's preactivations come from far; ask for them before waiting for h.
        t += 1 - 2 * direction
        begin_next, n_next = step_rows(offsets, t, steps, batch, PACKED)
        next_i, next_f, next_g, next_o = load_preactivations(x_gates, begin_next, n_next, rows, units, H)
        if ALONE:
            acc = accumulator(GATE_SLOTS * UNITS, ROWS, SPLIT)
            acc = multiply_add(weights[0], h.to(w_hh.dtype.element_ty), acc, SPLIT, PRECISION, UPCAST)
            a_i, a_f, a_g, a_o = split_gates(sum_parts(acc, SPLIT), UNITS, SPLIT)
        else:
            if step > 0:
                barrier(arrived, step * n_unit_blocks, CAN_TRAP)
            a_i, a_f, a_g, a_o = multiply_hidden(
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
        i, f, g, o, c_new, h_new = cell_forward(
            a_i + (x_i + b_i), a_f + (x_f + b_f), a_g + (x_g + b_g), a_o + (x_o + b_o), c
        )  # L1
        active = (rows < n)[None, :] & (units < H)[:, None]
        h = tl.where(active, h_new, h)
        c = tl.where(active, c_new, c)
        tl.store(output + (begin + rows)[None, :] * directions * H + units[:, None], h, mask=active)
        if SAVE:
            saved = begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
            tl.store(gates + saved, i, mask=active)
            tl.store(gates + saved + H, f, mask=active)
            tl.store(gates + saved + 2 * H, g, mask=active)
            tl.store(gates + saved + 3 * H, o, mask=active)
            tl.store(cells + (begin + rows)[None, :] * H + units[:, None], c, mask=active)
        begin_before, n_before = begin, n
        begin, n = begin_next, n_next
        x_i, x_f, x_g, x_o = next_i, next_f, next_g, next_o
    tl.store(h_n + state_tile, h, mask=present)
    tl.store(c_n + state_tile, c, mask=present)


# --- forward: one step ---------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_elements"])
def step_forward_kernel(
    x_gates,  # (n, 4H) in the state dtype: W_ih x
    bias,  # (4, H) in the state dtype: b_ih + b_hh
    h_gates,  # (n, 4H) in the state dtype: W_hh h'
    h_state,  # (n, H) the new h
    c_state,  # (n, H) in the state dtype: c' in, c out
    output,  # (n, H) h again, rows output_stride elements apart
    gates,  # (n, 4, H), written if SAVE
    cells,  # (n, H) in the state dtype, written if SAVE
    n_elements,  # n * H
    H,
    output_stride,
    SAVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n_elements
    row, unit = index // H, index % H
    gate = row * 4 * H + unit
    c = tl.load(c_state + index, mask=mask, other=0.0)
    x_i = tl.load(x_gates + gate, mask=mask, other=0.0) + tl.load(bias + unit, mask=mask, other=0.0)
    x_f = tl.load(x_gates + gate + H, mask=mask, other=0.0) + tl.load(bias + H + unit, mask=mask, other=0.0)
    x_g = tl.load(x_gates + gate + 2 * H, mask=mask, other=0.0) + tl.load(bias + 2 * H + unit, mask=mask, other=0.0)
    x_o = tl.load(x_gates + gate + 3 * H, mask=mask, other=0.0) + tl.load(bias + 3 * H + unit, mask=mask, other=0.0)
    a_i = tl.load(h_gates + gate, mask=mask, other=0.0) + x_i  # L1
    a_f = tl.load(h_gates + gate + H, mask=mask, other=0.0) + x_f
    a_g = tl.load(h_gates + gate + 2 * H, mask=mask, other=0.0) + x_g
    a_o = tl.load(h_gates + gate + 3 * H, mask=mask, other=0.0) + x_o
    i, f, g, o, c, h = cell_forward(a_i, a_f, a_g, a_o, c)
    tl.store(h_state + index, h, mask=mask)
    tl.store(c_state + index, c, mask=mask)
    tl.store(output + row * output_stride + unit, h, mask=mask)
    if SAVE:
        tl.store(gates + gate, i, mask=mask)
        tl.store(gates + gate + H, f, mask=mask)
        tl.store(gates + gate + 2 * H, g, mask=mask)
        tl.store(gates + gate + 3 * H, o, mask=mask)
        tl.store(cells + index, c, mask=mask)


# --- forward: launchers --------------------------------------------------------------------------------------------------


@accepts_one_step
def forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    has_projection: bool,
    bidirectional: bool,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One LSTM layer; the operator's contract is in :mod:`rnnkernels.ops`."""
    check_forward("lstm", input, batch_sizes, (h0, c0), weights, has_biases, has_projection, bidirectional)
    directions = split_directions(weights, has_biases, has_projection, bidirectional)
    h0, c0 = h0.contiguous(), c0.contiguous()
    D, N, P = h0.shape
    H, dtype = c0.size(-1), state_dtype(input.dtype)
    steps = Steps(input, batch_sizes, N)
    output = input.new_empty(*input.shape[:-1], D * P)
    shape = (D, *input.shape[:-1])
    gates = input.new_empty((*shape, 4, H) if save_for_backward else 0)
    cells = input.new_empty((*shape, H) if save_for_backward else 0, dtype=dtype)
    if steps.n_rows == 0 or H == 0:
        return output, h0.clone(), c0.clone(), gates, cells
    with of_library_products(input):
        x_gates = project_input(input.reshape(steps.n_rows, -1), [w.w_ih for w in directions])
        bias = _bias(directions, H, dtype)
        work = workload("lstm", input, steps, H, D, has_projection, backward=False)
        tiling = tiling_for(work, input)
        if tiling.schedule == "stepwise":
            h_n, c_n = _forward_stepwise(x_gates, bias, directions, h0, c0, steps, output, gates, cells)
        else:
            h_n, c_n = _forward_in_tiles(x_gates, bias, directions, h0, c0, steps, output, gates, cells, tiling, work)
    return output, h_n, c_n, gates, cells


def _bias(directions: list[DirectionWeights], H: int, dtype: torch.dtype) -> Tensor:
    """(D, 4, H) what L1 adds to each gate."""
    result = directions[0].w_hh.new_zeros(len(directions), 4, H, dtype=dtype)
    for own, w in zip(result, directions, strict=True):
        if w.b_ih is not None and w.b_hh is not None:
            torch.add(w.b_ih.view(4, H).to(dtype), w.b_hh.view(4, H), out=own)
    return result


def _forward_in_tiles(
    x_gates: Tensor,
    bias: Tensor,
    directions: list[DirectionWeights],
    h0: Tensor,
    c0: Tensor,
    steps: Steps,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    tiling: Tiling,
    work: Workload,
) -> tuple[Tensor, Tensor]:
    row_blocks = tiling.n_row_blocks(steps.batch)
    arrived = torch.zeros(row_blocks, work.directions, dtype=torch.int32, device=output.device)
    offsets = steps.offsets(output.device)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    arguments = {
        "x_gates": x_gates,
        "bias": bias,
        "w_hh": stacked([w.w_hh for w in directions]),
        "h0": h0,
        "c0": c0,
        "offsets": arrived if offsets is None else offsets,
        "output": output,
        "h_n": h_n,
        "c_n": c_n,
        "gates": gates,
        "cells": cells,
        "arrived": arrived,
        "steps": len(steps),
        "batch": steps.batch,
        "n_rows": steps.n_rows,
        "H": work.hidden_size,
        "PACKED": steps.packed,
        "SAVE": gates.numel() > 0,
    }
    run_in_tiles(forward_kernel, tiling, work, arguments, row_blocks)
    return h_n, c_n


def _forward_stepwise(
    x_gates: Tensor,
    bias: Tensor,
    directions: list[DirectionWeights],
    h0: Tensor,
    c0: Tensor,
    steps: Steps,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
) -> tuple[Tensor, Tensor]:
    P, H, save = h0.size(-1), c0.size(-1), gates.numel() > 0
    output = output.view(steps.n_rows, -1)
    h_n, c_n = h0.clone(), torch.empty_like(c0)
    for d, w in enumerate(directions):
        h, c = h_n[d], c0[d].to(state_dtype(c0.dtype), copy=True)
        own_gates, own_cells = (gates[d].view(-1, 4, H), cells[d].view(-1, H)) if save else (gates, cells)
        for t in steps.order(d):
            n, rows = steps.sizes[t], slice(steps.begins[t], steps.begins[t] + steps.sizes[t])
            own_output = output[rows, d * P : (d + 1) * P]
            unprojected = h[:n] if w.w_hr is None else h.new_empty(n, H)
            arguments = {
                "x_gates": x_gates[d, rows],
                "bias": bias[d],
                "h_gates": matmul(h[:n], w.w_hh.t()),
                "h_state": unprojected,
                "c_state": c,
                "output": own_output if w.w_hr is None else unprojected,
                "gates": own_gates[rows],
                "cells": own_cells[rows],
                "H": H,
                "output_stride": output.stride(0) if w.w_hr is None else H,
                "SAVE": save,
            }
            elementwise(step_forward_kernel, n * H, arguments)
            if w.w_hr is not None:
                h[:n] = unprojected @ w.w_hr.t()  # L8
                own_output.copy_(h[:n])
        c_n[d] = c
    return h_n, c_n


# --- backward: all steps in one launch -----------------------------------------------------------------------------------


@triton.jit
def load_saved(gates, begin, n, rows, units, H):
    """One step's saved gates i, f, g, o: four tiles [UNITS, ROWS] in float32, zero where no row is active."""
    address = gates + begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
    mask = (rows < n)[None, :] & (units < H)[:, None]
    i = tl.load(address, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(address + H, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(address + 2 * H, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(address + 3 * H, mask=mask, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit(do_not_specialize=["steps", "batch", "n_rows", "first_row_block"])
def backward_kernel(
    d_output,  # (R, D * H), not read unless HAS_D_OUTPUT
    d_h_n,  # (D, N, H)
    d_c_n,  # (D, N, H)
    w_hh,  # (D, 4H, H)
    gates,  # (D, R, 4, H)
    cells,  # (D, R, H) float32
    c0,  # (D, N, H)
    offsets,  # (T + 1) int64: the row where each step begins; not read unless PACKED
    d_gates,  # (D, R, 4, H): d(a)
    d_h0,  # (D, N, H)
    d_c0,  # (D, N, H)
    d_bias,  # (row blocks, D, 4, H) float32: each row block's sum of d(a) over its rows
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
    ALONE: tl.constexpr,  # one program has all units: d(a) stays inside and no barrier is needed
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
    cells += own * H
    d_output += direction * H
    state_tile = (direction * batch + rows[None, :]) * H + units[:, None]
    arrived += row_block * directions + direction
    dtype: tl.constexpr = w_hh.dtype.element_ty
    weights = load_backward_weights(w_hh + direction.to(tl.int64) * 4 * H * H, units, H, 4, CHUNK, N_CHUNKS, SPLIT)

    d_h = tl.load(d_h_n + state_tile, mask=present, other=0.0).to(tl.float32)
    d_c = tl.load(d_c_n + state_tile, mask=present, other=0.0).to(tl.float32)
    c_initial = tl.load(c0 + state_tile, mask=present, other=0.0).to(tl.float32)
    sum_i = tl.zeros((UNITS, ROWS), tl.float32)
    sum_f, sum_g, sum_o = sum_i, sum_i, sum_i
    t = (1 - direction) * (steps - 1)
    begin, n = step_rows(offsets, t, steps, batch, PACKED)
    begin_before, n_before = no_step()
    i, f, g, o = load_saved(gates, begin, n, rows, units, H)
    c = load_rows(cells, H, begin, n, rows, units, H)
    d_y = tl.zeros((UNITS, ROWS), tl.float32)
    if HAS_D_OUTPUT:
        d_y = load_rows(d_output, directions * H, begin, n, rows, units, H)
    # Gradients of h come one step late, when all programs have written d(a): one turn more, with no active row, brings h0's.
    for step in range(steps if ALONE else steps + 1):
        t += 2 * direction - 1
        begin_next, n_next = step_rows(offsets, t, steps, batch, PACKED)
        next_i, next_f, next_g, next_o = load_saved(gates, begin_next, n_next, rows, units, H)
        next_c = load_rows(cells, H, begin_next, n_next, rows, units, H)
        next_d_y = d_y
        if HAS_D_OUTPUT:
            next_d_y = load_rows(d_output, directions * H, begin_next, n_next, rows, units, H)
        if not ALONE:
            if step > 0:
                barrier(arrived, step * n_unit_blocks, CAN_TRAP)
            acc = accumulator(UNITS, ROWS, SPLIT)
            for gate in tl.static_range(4):
                acc = multiply_gate_gradient(
                    acc,
                    weights,
                    gate,
                    d_gates + gate * H,
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
            d_h += sum_parts(acc, SPLIT)  # LB1
        active = (rows < n)[None, :] & (units < H)[:, None]
        c_before = tl.where((rows < n_next)[None, :], next_c, c_initial)
        d_i, d_f, d_g, d_o, d_c_new = cell_backward(d_h + d_y, d_c, i, f, g, o, c, c_before)
        d_h = tl.where(active, 0.0, d_h)
        d_c = tl.where(active, d_c_new, d_c)
        d_i = tl.where(active, d_i, 0.0)
        d_f = tl.where(active, d_f, 0.0)
        d_g = tl.where(active, d_g, 0.0)
        d_o = tl.where(active, d_o, 0.0)
        sum_i += d_i
        sum_f += d_f
        sum_g += d_g
        sum_o += d_o
        address = d_gates + begin * 4 * H + (rows * 4 * H)[None, :] + units[:, None]
        tl.store(address, d_i, mask=active)
        tl.store(address + H, d_f, mask=active)
        tl.store(address + 2 * H, d_g, mask=active)
        tl.store(address + 3 * H, d_o, mask=active)
        if ALONE:
            acc = accumulator(UNITS, ROWS, SPLIT)
            acc = multiply_add(weights[0], d_i.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            acc = multiply_add(weights[1], d_f.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            acc = multiply_add(weights[2], d_g.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            acc = multiply_add(weights[3], d_o.to(dtype), acc, SPLIT, PRECISION, UPCAST)
            d_h += sum_parts(acc, SPLIT)  # LB1
        begin_before, n_before = begin, n
        begin, n = begin_next, n_next
        i, f, g, o, c, d_y = next_i, next_f, next_g, next_o, next_c, next_d_y
    tl.store(d_h0 + state_tile, d_h, mask=present)
    tl.store(d_c0 + state_tile, d_c, mask=present)
    bias = d_bias + (row_block * directions + direction) * 4 * H + units
    tl.store(bias, tl.sum(sum_i, 1), mask=units < H)
    tl.store(bias + H, tl.sum(sum_f, 1), mask=units < H)
    tl.store(bias + 2 * H, tl.sum(sum_g, 1), mask=units < H)
    tl.store(bias + 3 * H, tl.sum(sum_o, 1), mask=units < H)


# --- backward: one step --------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_elements"])
def step_backward_kernel(
    d_h,  # (n, H) in the state dtype: gradients of h from the step after
    d_output,  # (n, H), rows output_stride elements apart, not read unless HAS_D_OUTPUT
    d_c,  # (n, H) in the state dtype: d(c) in, d(c') out
    gates,  # (n, 4, H)
    cells,  # (n, H) in the state dtype
    c_before,  # (n, H) in the state dtype
    d_gates,  # (n, 4, H)
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
    c = tl.load(cells + index, mask=mask, other=0.0)
    i = tl.load(gates + gate, mask=mask, other=0.0).to(c.dtype)
    f = tl.load(gates + gate + H, mask=mask, other=0.0).to(c.dtype)
    g = tl.load(gates + gate + 2 * H, mask=mask, other=0.0).to(c.dtype)
    o = tl.load(gates + gate + 3 * H, mask=mask, other=0.0).to(c.dtype)
    d_y = tl.load(d_h + index, mask=mask, other=0.0)
    if HAS_D_OUTPUT:
        d_y += tl.load(d_output + row * output_stride + unit, mask=mask, other=0.0).to(c.dtype)
    c_prev = tl.load(c_before + index, mask=mask, other=0.0)
    d_i, d_f, d_g, d_o, d_c_prev = cell_backward(d_y, tl.load(d_c + index, mask=mask, other=0.0), i, f, g, o, c, c_prev)
    tl.store(d_gates + gate, d_i, mask=mask)
    tl.store(d_gates + gate + H, d_f, mask=mask)
    tl.store(d_gates + gate + 2 * H, d_g, mask=mask)
    tl.store(d_gates + gate + 3 * H, d_o, mask=mask)
    tl.store(d_c + index, d_c_prev, mask=mask)


# --- backward: launchers -------------------------------------------------------------------------------------------------


@accepts_one_step
def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    has_biases: bool,
    has_projection: bool,
    bidirectional: bool,
    needs_input_grad: bool,
    needs_weight_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of :func:`forward`."""
    check_forward("lstm", input, batch_sizes, (h0, c0), weights, has_biases, has_projection, bidirectional)
    check_backward("lstm", (grad_output, grad_h_n, grad_c_n), input, (h0, c0), output, (gates, cells), c0.size(-1))
    directions = split_directions(weights, has_biases, has_projection, bidirectional)
    h0, c0, output, gates, cells = (t.contiguous() for t in (h0, c0, output, gates, cells))  # vmap leaves them in any layout
    D, N, P = h0.shape
    H = c0.size(-1)
    steps = Steps(input, batch_sizes, N)
    d_h_n = torch.zeros_like(h0) if grad_h_n is None else grad_h_n.contiguous()
    d_c_n = torch.zeros_like(c0) if grad_c_n is None else grad_c_n.contiguous()
    d_output = None if grad_output is None else grad_output.reshape(steps.n_rows, D * P).contiguous()
    if steps.n_rows == 0 or H == 0:
        d_weights = [torch.zeros_like(w) for w in weights if needs_weight_grads]
        return input.new_zeros(input.shape if needs_input_grad else 0), d_h_n.clone(), d_c_n.clone(), d_weights
    d_gates = input.new_empty(D, steps.n_rows, 4, H)
    d_projected = input.new_empty((D, steps.n_rows, P) if has_projection else 0)
    with of_library_products(input):
        work = workload("lstm", input, steps, H, D, has_projection, backward=True)
        tiling = tiling_for(work, input)
        if tiling.schedule == "stepwise":
            d_h0, d_c0 = _backward_stepwise(d_output, d_h_n, d_c_n, directions, gates, cells, c0, steps, d_gates, d_projected)
            d_bias = d_gates.sum(1, dtype=state_dtype(input.dtype)) if needs_weight_grads else d_gates
        else:
            d_h0, d_c0, d_bias = _backward_in_tiles(
                d_output, d_h_n, d_c_n, directions, gates, cells, c0, steps, d_gates, tiling, work
            )
        d_input, d_weights = input.new_empty(0), []
        d_a = d_gates.view(D, steps.n_rows, 4 * H)
        if needs_input_grad:
            d_input = sum_products(d_a, [w.w_ih for w in directions]).view(input.shape)  # LB1
        for d, w in enumerate(directions if needs_weight_grads else []):
            h_before = steps.before(output.view(steps.n_rows, -1)[:, d * P : (d + 1) * P], h0[d], d)
            d_weights += [d_a[d].t() @ input.reshape(steps.n_rows, -1), d_a[d].t() @ h_before]
            if has_biases:
                own = d_bias[d].flatten().to(input.dtype, copy=True)
                d_weights += [own, own.clone()]
            if w.w_hr is not None:
                h = gates[d].view(-1, 4, H)[:, 3] * cells[d].view(-1, H).tanh()
                d_weights.append(d_projected[d].t() @ h.to(input.dtype))  # LB8
    return d_input, d_h0, d_c0, d_weights


def _backward_in_tiles(
    d_output: Tensor | None,
    d_h_n: Tensor,
    d_c_n: Tensor,
    directions: list[DirectionWeights],
    gates: Tensor,
    cells: Tensor,
    c0: Tensor,
    steps: Steps,
    d_gates: Tensor,
    tiling: Tiling,
    work: Workload,
) -> tuple[Tensor, Tensor, Tensor]:
    row_blocks = tiling.n_row_blocks(steps.batch)
    arrived = torch.zeros(row_blocks, work.directions, dtype=torch.int32, device=gates.device)
    offsets = steps.offsets(gates.device)
    d_h0, d_c0 = torch.empty_like(d_h_n), torch.empty_like(d_c_n)
    d_bias = cells.new_empty(row_blocks, work.directions, 4, work.hidden_size)
    arguments = {
        "d_output": gates if d_output is None else d_output,
        "d_h_n": d_h_n,
        "d_c_n": d_c_n,
        "w_hh": stacked([w.w_hh for w in directions]),
        "gates": gates,
        "cells": cells,
        "c0": c0,
        "offsets": arrived if offsets is None else offsets,
        "d_gates": d_gates,
        "d_h0": d_h0,
        "d_c0": d_c0,
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
    return d_h0, d_c0, d_bias.sum(0)


def _backward_stepwise(
    d_output: Tensor | None,
    d_h_n: Tensor,
    d_c_n: Tensor,
    directions: list[DirectionWeights],
    gates: Tensor,
    cells: Tensor,
    c0: Tensor,
    steps: Steps,
    d_gates: Tensor,
    d_projected: Tensor,
) -> tuple[Tensor, Tensor]:
    P, H, dtype = d_h_n.size(-1), c0.size(-1), cells.dtype
    d_h0, d_c0 = torch.empty_like(d_h_n), torch.empty_like(d_c_n)
    for d, w in enumerate(directions):
        d_h, d_c = d_h_n[d].to(dtype, copy=True), d_c_n[d].to(dtype, copy=True)
        own_gates, own_cells = gates[d].view(-1, 4, H), cells[d].view(-1, H)
        c_before = steps.before(own_cells, c0[d].to(dtype), d)
        for t in reversed(steps.order(d)):
            n, rows = steps.sizes[t], slice(steps.begins[t], steps.begins[t] + steps.sizes[t])
            d_y = None if d_output is None else d_output[rows, d * P : (d + 1) * P]
            d_hidden = d_h[:n]
            if w.w_hr is not None:
                d_projected[d, rows] = d_hidden if d_y is None else d_hidden + d_y
                d_hidden, d_y = matmul(d_projected[d, rows], w.w_hr), None  # LB8
            arguments = {
                "d_h": d_hidden,
                "d_output": d_hidden if d_y is None else d_y,
                "d_c": d_c,
                "gates": own_gates[rows],
                "cells": own_cells[rows],
                "c_before": c_before[rows],
                "d_gates": d_gates[d, rows],
                "H": H,
                "output_stride": 0 if d_y is None else d_y.stride(0),
                "HAS_D_OUTPUT": d_y is not None,
            }
            elementwise(step_backward_kernel, n * H, arguments)
            d_h[:n] = matmul(d_gates[d, rows].flatten(1), w.w_hh)  # LB1
        d_h0[d], d_c0[d] = d_h, d_c
    return d_h0, d_c0
