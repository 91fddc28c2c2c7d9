"""Operations, limits, targets and memory of ``python -m benchmarks``: formulas against counts, verdicts against known numbers."""

from __future__ import annotations

import math
import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops, memory, targets, wall
from benchmarks.cases import TORCH_CLASSES, Case, make_problem
from benchmarks.results import times_faster

BASE = Case("lstm", "inference", 7, 3, 5, 8)
SHAPES = {
    "dense": {},
    "packed": {"packed": True},
    "layers": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 3, "num_layers": 2},
}


def counted(case: Case) -> int:
    """What torch's own counter says of torch.nn's products, in float64, where no layer is fused, which it would not count."""
    problem = make_problem(replace(case, dtype="float64"), seed=0)
    module = TORCH_CLASSES[case.cell](**case.options()).double()
    data = problem.input.data if case.packed else problem.input
    data.requires_grad_(case.mode == "training")
    with FlopCounterMode(display=False) as counter:
        # Not module(...), whose hooks the counter uses in a way that gradients of a leaf do not allow.
        output = module.forward(problem.input._replace(data=data) if case.packed else data)[0]
        if case.mode == "training":
            output = output.data if case.packed else output
            torch.autograd.grad(output, [data, *module.parameters()], problem.grad_output)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_operations_are_what_torch_counts(cell, shape):
    if cell == "gru" and shape == "projection":
        return
    case = replace(BASE, cell=cell, **SHAPES[shape])
    rows = sum(case.lengths(seed=0))
    assert flops.operations(case, rows) == counted(case)
    # torch.nn does not compute the gradient of an initial state that nobody asked for.
    layers = case.num_layers * (2 if case.bidirectional else 1)
    first_steps = 2 * case.B * flops.GATES[cell] * case.H * (case.proj_size or case.H) * layers
    training = replace(case, mode="training")
    assert flops.operations(training, rows) == counted(training) + first_steps
    assert flops.operations(training, rows) == sum(
        flops.operations(replace(case, mode=mode), rows) for mode in ("forward", "backward")
    )


# --- the wall --------------------------------------------------------------------------------------------------------------


def test_the_wall_is_measured(native_library):
    limits = wall.measure(threads=1, seconds=0.002)
    assert limits["float32_flops"].keys() == {"1"} and limits["float32_flops"]["1"] > 1e8
    assert all(seconds > 1e-9 for seconds in limits["step_s"].values())
    sizes, rates = zip(*limits["read_bytes_per_s"]["1"], strict=True)
    assert list(sizes) == sorted(sizes) and min(rates) > 1e7
    assert "GFLOP/s on 1 thread" in wall.describe(limits)


def test_limits_that_make_no_sense_are_refused(native_library):
    from rnnkernels import _C

    with pytest.raises(ValueError, match="processors of this process"):
        _C.multiply_add_rate(threads=100_000)
    with pytest.raises(ValueError, match="processors of this process"):
        _C.multiply_add_rate(threads=0)
    with pytest.raises(ValueError, match="4096"):
        _C.read_rate(bytes=100, threads=1)
    with pytest.raises(ValueError, match="lstm or gru"):
        _C.step_latency(cell="rnn")


def test_without_the_extension_the_wall_has_a_reason(monkeypatch):
    def missing(name):
        raise ImportError("not built")

    monkeypatch.setattr("importlib.import_module", missing)
    limits = wall.measure(threads=1)
    assert limits == {"missing": "rnnkernels._C does not load: not built"}
    assert wall.rate(BASE, limits, 1) is None
    assert "not measured" in wall.describe(limits)


LIMITS = {
    "source": "made up",
    "float32_flops": {"1": 1e9},
    "bfloat16_flops": {"1": None},
    "read_bytes_per_s": {"1": [[1000, 8e9], [10_000, 4e9], [100_000, 2e9]]},
    "step_s": {"lstm": 1e-6, "gru": 2e-6},
    "handover_s": None,
}


def row(case: Case, wall_flops: float | None = 1e9) -> dict:
    rows = sum(case.lengths(seed=0))
    known = {"rows": rows, "operations": flops.operations(case, rows), "wall_flops": wall_flops}
    return {"case": case.as_dict(), "group": case.group, **known, "results": {}}


def test_the_bounds_of_a_case():
    case = Case("gru", "training", 10, 4, 16, 16, num_layers=2)
    bounds = wall.bounds(case, row(case), LIMITS, threads=1)
    assert bounds["products"] == pytest.approx(3 * 2 * 40 * 2 * 3 * 16 * 32 / 1e9)
    assert bounds["weights"] == pytest.approx(10 * 2 * 2 * (4 * 3 * 16 * 16) / 4e9)  # 3072 bytes: the second footprint
    assert bounds["steps"] == pytest.approx(10 * 2 * 2 * 2e-6)
    assert wall.bounds(case, row(case, wall_flops=None), LIMITS, threads=1) == {}


def test_weights_larger_than_every_footprint_are_read_as_the_largest():
    assert wall.read_rate(LIMITS, 1, 10**9) == 2e9


# --- targets ---------------------------------------------------------------------------------------------------------------


def result(*rows: dict) -> dict:
    return {"cases": list(rows), "wall": LIMITS, "settings": {"threads": 1}, "baseline": "torch.nn"}


def outcome(found: dict, subject: str, against: str, each: bool = False) -> targets.Outcome:
    (one,) = [o for o in targets.judge(found) if (o.target.subject, o.target.against, o.target.each) == (subject, against, each)]
    return one


def test_a_target_is_the_geometric_mean_over_its_cases_and_the_worst_is_named():
    slow, fast = Case("lstm", "inference", 5, 2, 8, 8), Case("lstm", "inference", 6, 2, 8, 8)
    other = Case("gru", "inference", 5, 2, 8, 8)
    found = result(
        {**row(slow), "results": _entries(rnnkernels=2.0, **{"torch.nn": 1.8})},
        {**row(fast), "results": _entries(rnnkernels=1.0, **{"torch.nn": 10.0})},
        {**row(other), "results": _entries(rnnkernels=1.0, **{"torch.nn": 0.1})},
    )
    mean = outcome(found, "LSTM inference", "torch.nn")
    assert mean.cases == 2 and mean.mean == pytest.approx(3.0) and mean.met
    each = outcome(found, "LSTM inference", "torch.nn", each=True)
    assert each.worst == pytest.approx(0.9) and each.worst_case == slow and each.met is False
    assert outcome(found, "LSTM training", "torch.nn").met is None
    text = targets.table(found)
    assert "| LSTM inference | torch.nn | ≥ 2 | 3.00 | 2 | 0.90: T=5 B=2 I=8 H=8 | yes |" in text
    assert "| LSTM inference | torch.nn | ≥ 1 in each | 0.90 | 2 | 0.90: T=5 B=2 I=8 H=8 | **no** |" in text
    assert "| LSTM training | torch.nn | ≥ 1.7 | not measured | 0 |  |  |" in text
    assert targets.verdict(found).startswith("1 of ") and "Refused" not in targets.verdict(found)
    found["cases"][1]["results"]["rnnkernels"] = {"error": "the error of output is 3 times its budget"}
    assert f"Refused by the gate and in no line above: {fast}." in targets.verdict(found)


def _entries(**seconds: float) -> dict:
    return {name: {"median_s": s, "samples_s": [s, s]} for name, s in seconds.items()}


def test_ratios_are_those_of_the_rounds_not_of_the_medians():
    found = row(BASE)
    found["results"] = {
        "rnnkernels": {"median_s": 2.0, "samples_s": [1.0, 2.0, 4.0]},
        "torch.nn": {"median_s": 4.0, "samples_s": [2.0, 4.0, 4.0]},
    }
    assert times_faster(found, "rnnkernels", "torch.nn") == 2.0
    assert times_faster(found, "torch.nn", "rnnkernels") == 0.5


def test_packed_is_held_against_dense_by_the_real_element():
    packed = Case("lstm", "training", 40, 4, 8, 8, packed=True)
    real = sum(packed.lengths(seed=0))
    entries = _entries(**{"rnnkernels": real * 2e-6, "rnnkernels:padded": 160e-6})
    assert real < 160
    found = result({**row(packed), "results": entries}, row(replace(packed, cell="gru")))
    assert outcome(found, "LSTM packed training", "own dense, per real element").mean == pytest.approx(0.5)


def test_bfloat16_is_held_against_float32_and_the_wall_against_the_rows_own():
    case = Case("lstm", "inference", 20, 32, 512, 512)
    seconds = row(case)["operations"] / 1e9
    found = result(
        {**row(case, wall_flops=2e9), "results": _entries(rnnkernels=seconds)},
        {**row(replace(case, dtype="bfloat16")), "results": _entries(rnnkernels=seconds / 3)},
    )
    assert outcome(found, "bfloat16 inference, H ≥ 256", "own float32").mean == pytest.approx(3.0)
    share = outcome(found, "inference, H ≥ 512, B ≥ 32", "the wall")
    assert share.mean == pytest.approx(0.5) and share.met is False


def test_memory_is_held_against_torch_nns():
    case = Case("gru", "training", 20, 32, 512, 512)
    entries = _entries(rnnkernels=1.0, **{"torch.nn": 1.0})
    entries["rnnkernels"]["peak_bytes"], entries["torch.nn"]["peak_bytes"] = 4 << 20, 3 << 20
    found = outcome(result({**row(case), "results": entries}), "memory of a training step", "torch.nn", each=True)
    assert found.worst == pytest.approx(0.75) and found.met is False


# --- memory ------------------------------------------------------------------------------------------------------------------


def test_the_peak_of_a_call_counts_what_it_gives_back_before_it_ends():
    if memory.unsupported("cpu"):
        pytest.skip(memory.unsupported("cpu"))
    size = 64 * 2**20

    def call() -> torch.Tensor:
        scratch = torch.ones(size // 4)
        return scratch[:1].clone()

    assert memory.peak(call) == pytest.approx(size, rel=0.02)  # the system counts pages some dozens at a time
    assert memory.peak(lambda: math.sqrt(2)) < 2**20


def test_a_fresh_process_has_a_heap_without_a_past():
    here = os.getpid()
    assert memory.in_fresh_process(os.getpid) != here
    assert memory.in_fresh_process(os.getpid) != memory.in_fresh_process(os.getpid)
    assert "mmap_threshold" in memory.in_fresh_process(os.getenv, "GLIBC_TUNABLES")
    assert memory.in_fresh_process(os.getenv, "RNNKERNELS_KEPT_MEMORY_MIB") == "0"


def test_the_environment_stays_as_it_was():
    before = dict(os.environ)
    memory.in_fresh_process(os.getpid)
    assert dict(os.environ) == before


def test_what_a_fresh_process_raises_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        memory.in_fresh_process(int, "no number")
    with pytest.raises(BrokenProcessPool):
        memory.in_fresh_process(os.abort)
