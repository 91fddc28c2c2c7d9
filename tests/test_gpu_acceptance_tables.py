"""What a run of the GPU acceptance leaves in the sources: tables that plans read, and the constants of the cost model."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the acceptance needs Triton")

from benchmarks.cases import Case
from benchmarks.gpu_acceptance import refit, tables, tuning
from benchmarks.gpu_acceptance.mechanisms import PROGRAM
from benchmarks.gpu_acceptance.schedules import TRITON_STEPWISE, Choice, Cuda, workload
from rnnkernels.backends.triton import tuning as triton_tuning
from rnnkernels.backends.triton.plan import STEPWISE

ROOT = Path(__file__).resolve().parent.parent
CONDITIONS = {"machine": "H200", "commit": "abc", "date": "2026-11-27", "triton": "3.6.0", "dry_run": False}
HARDWARE = {
    "key": "hardware",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "shared_memory_per_block_optin": 232448,
}


def write(directory, **stages):
    for name, rows in {"machine": [HARDWARE], **stages}.items():
        (directory / f"{name}.json").write_text(json.dumps({"conditions": CONDITIONS, "rows": rows}))


def tuned(backend, choice, case, precision="bfloat16", backward=False):
    key = tuning.key(case, precision, backward, backend)
    row = {"key": key, "backend": backend, "precision": precision, "case": case.as_dict(), "backward": backward}
    return {**row, "fastest": choice.as_dict()}


LAYER = Case("lstm", "training", 128, 16, 256, 256, "bfloat16")
CLUSTER = Choice("cuda", Cuda("cluster", "deep", 8))
ROWS = [
    tuned("cuda", CLUSTER, LAYER),
    tuned("cuda", Choice("cuda", Cuda("stepwise")), Case("gru", "training", 128, 1, 64, 64), "ieee", backward=True),
    tuned("triton", TRITON_STEPWISE, LAYER),
    {"key": "failed", "backend": "cuda", "error": "no tiling ran"},
]


# --- the tables ----------------------------------------------------------------------------------------------------------


def test_the_fastest_schedules_become_entries_that_the_plan_compiles(tmp_path):
    write(tmp_path, tuning=ROWS)
    cuda = tmp_path / "measurements.inc"
    assert tables.write(tmp_path, cuda, tmp_path / "measured")[0] == cuda
    text = cuda.read_text()
    assert "H200, commit abc, 2026-11-27" in text
    entry = "CellName::kLstm, ProductName::kBFloat16, Pass::kForward, 90, 256, 16, Schedule::kCluster, TileName::kDeep, 8"
    assert f"{{{entry}}},\n" in text
    assert text.count("{") == 2
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = f'#include "{ROOT}/csrc/cuda/plan.h"\nusing namespace rnnkernels::cuda;\nconst Measured table[] = {{\n{text}}};\n'
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"], input=source, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_a_table_replaces_its_own_gpu_generations_and_keeps_the_others(tmp_path):
    conditions = {**CONDITIONS, "machine": "A100"}
    first = tables.cuda_table(ROWS[:1], 80, conditions, (ROOT / "csrc/cuda/measurements.inc").read_text())
    both = tables.cuda_table(ROWS[:2], 90, CONDITIONS, first)
    assert both.index("Compute capability 80, A100") < both.index("Compute capability 90, H200")
    assert tables.cuda_table(ROWS[:1], 80, conditions, both) == both
    fewer = tables.cuda_table(ROWS[:1], 90, CONDITIONS, both)
    assert fewer.count("{") == 2 and "A100" in fewer


def test_tritons_table_is_what_the_package_reads_behind_ones_own_measurements(tmp_path, monkeypatch):
    write(tmp_path, tuning=ROWS)
    tables.write(tmp_path, tmp_path / "measurements.inc", tmp_path / "measured")
    monkeypatch.setattr(triton_tuning, "_COMMITTED", tmp_path / "measured")
    key = triton_tuning.key(workload(LAYER, "bfloat16", backward=False))
    assert triton_tuning.committed((9, 0)) == {key: STEPWISE}
    assert triton_tuning.committed((8, 0)) == {}
    assert json.loads((tmp_path / "measured" / "sm_90.json").read_text())["commit"] == "abc"


def test_a_run_without_measurements_of_a_gpu_makes_no_table(tmp_path):
    with pytest.raises(tables.NoMeasurements, match="run the stages machine and tuning"):
        tables.write(tmp_path)
    write(tmp_path, tuning=ROWS)
    content = json.loads((tmp_path / "tuning.json").read_text())
    content["conditions"]["dry_run"] = True
    (tmp_path / "tuning.json").write_text(json.dumps(content))
    with pytest.raises(tables.NoMeasurements, match="dry run"):
        tables.write(tmp_path)


# --- the cost model ------------------------------------------------------------------------------------------------------

CLOCK = 2000.0  # cycles per microsecond
#: What the program would print on a machine of these costs.
MEASURED = {
    ("clock_rate",): CLOCK,
    ("product_latency_bf16",): 30 / CLOCK,
    ("product_rate_bf16",): 0.5 * CLOCK,
    ("shared_rate", 256): 100 * CLOCK,
    ("word_latency",): 1000 / CLOCK,
    ("cta_barrier", 256): 40 / CLOCK,
    ("cell_latency_lstm",): 150 / CLOCK,
    ("global_rate", 1 << 12): 6e6,
    ("library_step", 256, 16): 4.5,
    **{("cluster_exchange", 8, vectors, 15): (400 + vectors * 16 * 7 / 20) / CLOCK for vectors in (8, 64, 128)},
    **{("resident_clusters", n, 200): 132 // n - 1 for n in (2, 4, 8, 16)},
}
EXPECTED = {
    "cycles_per_microsecond": CLOCK,
    "product_latency": 30,
    "products_per_cycle": 0.5,
    "shared_bytes_per_cycle": 100,
    "remote_latency": 400,
    "remote_bytes_per_cycle": 20,
    "hand_over": 1000,
    "cache_bytes_per_cycle": 6e6 / CLOCK / 132,
    "cta_barrier": 40,
    "cell_latency": 150,
    "clusters_of_2": 65,
    "clusters_of_4": 32,
    "clusters_of_8": 15,
    "clusters_of_16": 7,
    "stepwise_launches": 4.5,
    "stepwise_bytes_per_microsecond": 6e6,
}


def mechanisms(measured):
    return [{"key": str(m), "mechanism": m[0], "numbers": list(m[1:]), "median": value} for m, value in measured.items()]


def step(case, tile, ctas, microseconds):
    plan = {"cuda": {"forward": {"schedule": "cluster" if ctas > 1 else "one CTA", "tile": tile, "ctas": ctas}}}
    results = {"cuda plan": {"us_per_step_alone": microseconds}}
    return {"key": str(case), "case": case.as_dict(), "precision": "bfloat16", "plan": plan, "results": results}


@pytest.fixture
def costs(tmp_path):
    """A copy of the committed constants."""
    return Path(shutil.copy(refit.COSTS, tmp_path / "costs.inc"))


def test_constants_follow_from_mechanisms_and_the_rest_from_steps(tmp_path, costs, native_library):
    cases = [(Case("lstm", "inference", 512, B, H, H, "bfloat16"), tile, ctas) for B, H, tile, ctas in
             ((1, 64, "narrow", 1), (16, 128, "narrow", 2), (64, 256, "narrow", 8), (256, 256, "deep", 8))]  # fmt: skip
    known = {**refit.read_costs(costs.read_text()), **EXPECTED, "rest": 123.0}
    empty = [step(*case, microseconds=0.0) for case in cases]
    exact = [one.estimate(known) for one in refit.measured_steps({"rows": empty}, HARDWARE)]
    speed = [step(*case, microseconds=us) for case, us in zip(cases, exact, strict=True)]
    write(tmp_path, mechanisms=mechanisms(MEASURED), speed=speed)
    report = refit.run(tmp_path, write=True, path=costs)
    assert refit.read_costs(costs.read_text()) == pytest.approx(known, rel=1e-4)
    assert "model's after: median 1.00, 1.00 to 1.00" in report
    assert re.search(r"Measured on H200, commit abc, 2026-11-27\.\n", costs.read_text())
    assert "Estimated from published" not in costs.read_text()


def test_what_was_not_measured_stays_and_is_named(tmp_path, costs):
    before = refit.read_costs(costs.read_text())
    write(tmp_path, mechanisms=mechanisms({("clock_rate",): CLOCK, ("cta_barrier", 256): 40 / CLOCK}))
    report = refit.run(tmp_path, write=True, path=costs)
    after = refit.read_costs(costs.read_text())
    assert {name for name in after if after[name] != before[name]} == {"cycles_per_microsecond", "cta_barrier"}
    assert f"| cell_latency | {before['cell_latency']:g} | not measured |" in report
    assert "but for product_latency," in costs.read_text() and "rest.\n" in costs.read_text()


def test_without_being_told_to_write_nothing_is_written(tmp_path, costs):
    before = costs.read_text()
    write(tmp_path, mechanisms=mechanisms(MEASURED))
    refit.run(tmp_path, write=False, path=costs)
    assert costs.read_text() == before
    with pytest.raises(refit.NothingToFit, match="run the stages machine, build and mechanisms"):
        refit.run(tmp_path / "nowhere", write=False)


def test_every_mechanism_that_a_constant_follows_from_is_measured():
    measured = {(name, *numbers) for name, numbers, _ in PROGRAM} | {("library_step", 256, 16), ("multiprocessors",)}
    for name, rule in refit.RULES.items():
        assert set(rule.mechanisms) <= measured, name
    assert set(refit.RULES) | {"rest"} == set(refit.read_costs(refit.COSTS.read_text()))
