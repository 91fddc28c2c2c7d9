"""Kernels that do one thing each, so that its cost can be read off."""

from __future__ import annotations

import triton
import triton.language as tl

from rnnkernels.backends.triton.tiles import barrier


@triton.jit
def empty_kernel(out):
    """Nothing but to be launched."""
    if tl.program_id(0) < 0:
        tl.store(out, 0)


@triton.jit(do_not_specialize=["rounds"])
def barrier_kernel(
    arrived,  # (1) int32 zero
    rounds,
    CAN_TRAP: tl.constexpr,
):
    """``rounds`` meetings of all programs at our barrier."""
    n_programs = tl.num_programs(0)
    for round in range(rounds):
        barrier(arrived, (round + 1) * n_programs, CAN_TRAP)


@triton.jit(do_not_specialize=["rounds"])
def exchange_kernel(
    data,  # (2, n_programs * OWN) bfloat16: a buffer to read and one to write, in turn
    arrived,  # (1) int32 zero
    out,  # (n_programs) float32
    rounds,
    OWN: tl.constexpr,  # elements a program writes
    ALL: tl.constexpr,  # elements it reads: a power of two, at least n_programs * OWN
    CAN_TRAP: tl.constexpr,
):
    """What a step of the grid schedule does besides computing: write one's own part of h, meet, read everybody's."""
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    n = n_programs * OWN
    own, everything = program * OWN + tl.arange(0, OWN), tl.arange(0, ALL)
    value = tl.zeros((OWN,), tl.float32)
    total = tl.zeros((ALL,), tl.float32)
    for round in range(rounds):
        buffer = data + (round % 2) * n
        tl.store(buffer + own, value.to(data.dtype.element_ty))
        barrier(arrived, (round + 1) * n_programs, CAN_TRAP)
        total += tl.load(buffer + everything, mask=everything < n, other=0.0, cache_modifier=".cg").to(tl.float32)
        value += 1.0
    tl.store(out + program, tl.sum(total, 0))


@triton.jit(do_not_specialize=["rounds", "n"])
def cache_read_kernel(
    data,  # (n) float32, n a multiple of BLOCK
    out,  # (n_programs) float32
    n,
    rounds,
    BLOCK: tl.constexpr,
):
    """Every program reads the same buffer over and over, past the first-level cache, each beginning somewhere else."""
    program = tl.program_id(0)
    n_blocks = n // BLOCK
    total = tl.zeros((BLOCK,), tl.float32)
    for round in range(rounds):
        block = (program * 7 + round) % n_blocks
        total += tl.load(data + block * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(out + program, tl.sum(total, 0))
