"""What the sequence kernels of both cells are made of: gate functions, tiles of weights, products over the hidden size, rows of a
packed batch, and the barrier among programs.

A *tile* is what one program holds of a tensor at one step: ``[UNITS, ROWS]``, hidden units by batch rows. Units come first: then
weights are the left operand of ``tl.dot`` and their four gates fill the 64 rows of a Hopper matrix instruction, while the batch,
often small, takes the side that may be 16 wide. In memory units are contiguous, as torch.nn has them.

Products over the hidden size run in *chunks* of CHUNK units. One program's weights are a Python tuple with one tensor per chunk,
loaded before the time loop; the compiler keeps them in registers or shared memory throughout. With SPLIT > 1 each chunk is cut
into SPLIT parts along the contracted axis, one per warp (``tl.dot`` on three axes), so that a warp needs no other's weights; the
parts are added by :func:`sum_parts`.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Times a program looks at a barrier before it gives up: several seconds, where a whole launch waits for microseconds.
SPIN_LIMIT = tl.constexpr(1 << 24)

#: Gates a forward product is laid out for. The GRU has three; block shapes are powers of two, so its fourth is zero.
GATE_SLOTS = tl.constexpr(4)


# --- gate functions ------------------------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); exp(-x) may overflow to inf, which gives 0, and NaN stays NaN."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh, to a few ulp also where it is small, which 2 * sigmoid(2x) - 1 is not."""
    if x.dtype == tl.float64:
        # Kahan's expm1(y) = (e - 1) * y / log(e) with e = exp(y): the rounding error of e cancels. tanh(|x|) = -m / (m + 2) with
        # m = expm1(-2|x|). Where e is 0 or 1 the quotient is not a number and its limit is taken.
        y = -2.0 * tl.abs(x)
        e = tl.exp(y)
        inner = (e != 1.0) & (e > 0.0)
        m = tl.where(inner, (e - 1.0) * y / tl.log(tl.where(inner, e, 0.5)), tl.where(e == 1.0, y, -1.0))
        magnitude = -m / (m + 2.0)
        result = tl.where(x < 0, -magnitude, magnitude)
    else:
        # Below 0.6 a polynomial, x + x^3 p(x^2), fitted for least relative error on that interval (2.8e-9).
        z = x * x
        p = -5.8951578e-3 * z + 2.0795971e-2
        p = p * z - 5.3783830e-2
        p = p * z + 1.3331924e-1
        p = p * z - 3.3333299e-1
        small = x + x * z * p
        # tanh(|x|) = 1 - 2 / (exp(2|x|) + 1); exp may overflow to inf, which gives 1.
        magnitude = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
        large = tl.where(x < 0, -magnitude, magnitude)
        result = tl.where(tl.abs(x) < 0.6, small, large)
    return tl.where(x == x, result, x)


# --- rows of a step ------------------------------------------------------------------------------------------------------


@triton.jit
def step_rows(offsets, t, steps, batch, PACKED: tl.constexpr):
    """-> (first row of step t in the data, number of active batch rows): 0 rows outside 0 <= t < steps."""
    inside = (t >= 0) & (t < steps)
    if PACKED:
        begin = tl.load(offsets + t, mask=inside, other=0)
        end = tl.load(offsets + t + 1, mask=inside, other=0)
        return begin, (end - begin).to(tl.int32)
    else:
        return t.to(tl.int64) * batch, tl.where(inside, batch, 0)


@triton.jit
def no_step():
    """What :func:`step_rows` gives outside: where the step before the first one had its rows.

    Its own two values, not ``begin, 0``: Triton (3.6 and 3.9) compiles a loop's body once to see which variables end it with
    another value than they entered it with, and takes the others for constant; ``begin_before``, entering as ``begin`` and ending
    as ``begin``, would stay at the first step's rows for ever.
    """
    return tl.full((), 0, tl.int64), tl.full((), 0, tl.int32)


@triton.jit
def load_rows(data, stride, begin, n, rows, units, H):
    """One step's rows of a tensor with ``stride`` elements a row: a tile [UNITS, ROWS], zero where no row is active."""
    mask = (rows < n)[None, :] & (units < H)[:, None]
    return tl.load(data + ((begin + rows) * stride)[None, :] + units[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_bias(bias, units, H):
    """(4, H) float32 of one direction -> four columns [UNITS, 1]."""
    inside = units < H
    first = tl.load(bias + units, mask=inside, other=0.0)
    second = tl.load(bias + H + units, mask=inside, other=0.0)
    third = tl.load(bias + 2 * H + units, mask=inside, other=0.0)
    fourth = tl.load(bias + 3 * H + units, mask=inside, other=0.0)
    return first[:, None], second[:, None], third[:, None], fourth[:, None]


# --- products over the hidden size ---------------------------------------------------------------------------------------


@triton.jit
def split_parts(tile, SPLIT: tl.constexpr):
    """[M, CHUNK] -> [SPLIT, M, CHUNK / SPLIT], the left operand of a split product."""
    if SPLIT == 1:
        return tile
    else:
        return tl.permute(tl.reshape(tile, (tile.shape[0], SPLIT, tile.shape[1] // SPLIT)), (1, 0, 2))


@triton.jit
def accumulator(M: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr):
    if SPLIT == 1:
        return tl.zeros((M, ROWS), tl.float32)
    else:
        return tl.zeros((SPLIT, M, ROWS), tl.float32)


@triton.jit
def multiply_add(weights, tile, acc, SPLIT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + weights @ tile: weights from :func:`split_parts`, tile [CHUNK, ROWS] in the same dtype.

    UPCAST: Triton's interpreter multiplies the bits of bfloat16 numbers as integers; float32 holds their products exactly.
    """
    if SPLIT > 1:
        tile = tl.reshape(tile, (SPLIT, tile.shape[0] // SPLIT, tile.shape[1]))
    if UPCAST:
        return tl.dot(weights.to(tl.float32), tile.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(weights, tile, acc, input_precision=PRECISION)


@triton.jit
def sum_parts(acc, SPLIT: tl.constexpr):
    """[SPLIT, M, ROWS] -> [M, ROWS]. By halves: one exchange among warps brings all parts of an element into one thread, where
    ``tl.sum`` over the first axis would exchange them one after another."""
    if SPLIT == 8:
        acc = tl.permute(tl.reshape(acc, (2, 2, 2, acc.shape[1], acc.shape[2])), (3, 4, 0, 1, 2))
        even, odd = tl.split(acc)
        even, odd = tl.split(even + odd)
        even, odd = tl.split(even + odd)
        return even + odd
    elif SPLIT == 4:
        acc = tl.permute(tl.reshape(acc, (2, 2, acc.shape[1], acc.shape[2])), (2, 3, 0, 1))
        even, odd = tl.split(acc)
        even, odd = tl.split(even + odd)
        return even + odd
    else:
        tl.static_assert(SPLIT == 1, "products are split in 1, 4 or 8 parts")
        return acc


@triton.jit
def split_gates(acc, UNITS: tl.constexpr, SPLIT: tl.constexpr):
    """[GATE_SLOTS * UNITS, ROWS], in the order of :func:`load_forward_weights`, -> four tiles [UNITS, ROWS]."""
    if SPLIT == 1:
        acc = tl.permute(tl.reshape(acc, (UNITS, 2, 2, acc.shape[1])), (0, 3, 1, 2))
    else:
        acc = tl.permute(tl.reshape(acc, (2, 2, UNITS, acc.shape[1])), (2, 3, 0, 1))
    even, odd = tl.split(acc)  # gates 0 and 2, gates 1 and 3
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


# --- the forward product: all gates of a program's units from the hidden states of all units ------------------------------


@triton.jit
def load_forward_weights(
    w_hh,  # (GATES * H, H) of one direction
    first_unit,
    H,
    GATES: tl.constexpr,
    UNITS: tl.constexpr,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """-> per chunk of hidden units the left operand [GATE_SLOTS * UNITS, CHUNK], split.

    Rows: an unsplit product has a unit's gates side by side, which no layout of a matrix instruction's result keeps in one
    thread; so :func:`split_gates` exchanges once, into the layout of loads and stores. Were gates apart, it would need no
    exchange, the gate functions would be computed in the instruction's layout, and every load and store would be exchanged
    instead. A split product is exchanged by :func:`sum_parts` anyway; gates apart then make the longer transfers.
    """
    row = tl.arange(0, GATE_SLOTS * UNITS)
    if SPLIT == 1:
        gate, unit = row % GATE_SLOTS, first_unit + row // GATE_SLOTS
    else:
        gate, unit = row // UNITS, first_unit + row % UNITS
    present = (gate < GATES) & (unit < H)
    weights = ()
    for chunk in tl.static_range(N_CHUNKS):
        k = chunk * CHUNK + tl.arange(0, CHUNK)
        address = w_hh + (gate * H + unit)[:, None] * H + k[None, :]
        tile = tl.load(address, mask=present[:, None] & (k < H)[None, :], other=0.0)
        weights = weights + (split_parts(tile, SPLIT),)  # noqa: RUF005  (Triton's tuples know + and no unpacking)
    return weights


@triton.jit
def multiply_hidden(
    weights,
    output,  # (R, ·) one direction's columns, from which the hidden states of the step before are read back
    h0,  # (N, H) of one direction: the states of rows that were not active in the step before
    output_stride,  # elements from one row of output to the next
    begin_before,  # the row of output where the step before begins
    n_before,  # its active rows
    n,  # this step's
    rows,  # [ROWS] batch rows
    H,
    UNITS: tl.constexpr,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """W_hh h' of L1 and G1-G3 -> four tiles [UNITS, ROWS] in float32."""
    acc = accumulator(GATE_SLOTS * UNITS, rows.shape[0], SPLIT)
    from_output, from_h0 = rows < n_before, (rows >= n_before) & (rows < n)
    row_begin = output + (begin_before + rows) * output_stride
    for chunk in tl.static_range(N_CHUNKS):
        k = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = (k < H)[:, None]
        # .cg: other programs wrote these rows, and this processor's first-level cache does not hear of it.
        h = tl.load(row_begin[None, :] + k[:, None], mask=inside & from_output[None, :], other=0.0, cache_modifier=".cg")
        if n > n_before:
            initial = tl.load(h0 + (rows * H)[None, :] + k[:, None], mask=inside & from_h0[None, :], other=0.0)
            h = tl.where(from_h0[None, :], initial, h)
        acc = multiply_add(weights[chunk], h, acc, SPLIT, PRECISION, UPCAST)
    return split_gates(sum_parts(acc, SPLIT), UNITS, SPLIT)


# --- the backward product: gradients of a program's hidden units from the gate gradients of all units ---------------------


@triton.jit
def load_backward_weights(
    w_hh,  # (GATES * H, H) of one direction
    units,  # [UNITS]
    H,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """-> per gate, per chunk of hidden units, the left operand [UNITS, CHUNK] of W_hh^T, split."""
    weights = ()
    for gate in tl.static_range(GATES):
        for chunk in tl.static_range(N_CHUNKS):
            k = chunk * CHUNK + tl.arange(0, CHUNK)
            address = w_hh + (gate * H + k)[None, :] * H + units[:, None]
            tile = tl.load(address, mask=(units < H)[:, None] & (k < H)[None, :], other=0.0)
            weights = weights + (split_parts(tile, SPLIT),)  # noqa: RUF005
    return weights


@triton.jit
def multiply_gate_gradient(
    acc,
    weights,
    GATE: tl.constexpr,  # which of the weights' gates
    d_gate,  # (R, ·) the gate's gradients of one direction, as programs wrote them in the step before
    gate_stride,  # elements from one row to the next
    begin_before,  # the row where that step begins
    n_before,  # its active rows
    rows,  # [ROWS] batch rows
    H,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One gate's share of W_hh^T d(a) in LB1, W_hh^T d(u) in GB3, added to ``acc``."""
    row_begin = d_gate + (begin_before + rows) * gate_stride
    for chunk in tl.static_range(N_CHUNKS):
        k = chunk * CHUNK + tl.arange(0, CHUNK)
        mask = (k < H)[:, None] & (rows < n_before)[None, :]
        tile = tl.load(row_begin[None, :] + k[:, None], mask=mask, other=0.0, cache_modifier=".cg")
        acc = multiply_add(weights[GATE * N_CHUNKS + chunk], tile, acc, SPLIT, PRECISION, UPCAST)
    return acc


# --- the barrier ---------------------------------------------------------------------------------------------------------


@triton.jit
def give_up():
    """Stop the kernel with an error, which the next call into the driver reports."""
    tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def barrier(arrived, expected, CAN_TRAP: tl.constexpr):
    """Wait until programs have arrived here ``expected`` times in all, counting every step since the launch.

    What each program stored before is seen by every program after: threads of a program meet (``debug_barrier``), then one of
    them releases and acquires at the scope of the device. All programs must be resident at once: launch cooperatively. A wait
    that lasts longer than any step can traps.
    """
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release", scope="gpu")
    seen = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    spins = 0
    while (seen < expected) & (spins < SPIN_LIMIT):
        seen = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
        spins += 1
    if CAN_TRAP:
        if seen < expected:
            give_up()
    tl.debug_barrier()
