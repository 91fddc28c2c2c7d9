"""What ``python -m benchmarks`` makes of result files: comparisons, explanations, reports and figures, from made-up numbers."""

from __future__ import annotations

import copy
import json
import re
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks import compare, explain, figures, flops, report, results, test_speed
from benchmarks.cases import Case
from benchmarks.gpu_acceptance import __main__ as acceptance
from benchmarks.gpu_acceptance import documents as gpu
from benchmarks.gpu_acceptance.stage import read_json, write_json

LIMITS = {
    "source": "made up",
    "float32_flops": {"1": 50e9, "2": 100e9},
    "bfloat16_flops": {"1": None, "2": None},
    "read_bytes_per_s": {n: [[2**k, 1e11 if k < 20 else 1e10] for k in range(14, 27)] for n in ("1", "2")},
    "step_s": {"lstm": 70e-9, "gru": 60e-9},
    "handover_s": 1e-7,
}


def entry(seconds: float, base: float) -> dict:
    times = {"median_s": seconds, "p20_s": 0.95 * seconds, "p80_s": 1.05 * seconds, "samples_s": [seconds] * 3}
    ratio = base / seconds
    return {**times, "speedup": ratio, "speedup_p20": 0.95 * ratio, "speedup_p80": 1.05 * ratio, "rounds": 3}


def row(case: Case, base: float, **ours: float) -> dict:
    rows = sum(case.lengths(seed=0))
    return {
        **{"case": case.as_dict(), "group": case.group, "rows": rows, "operations": flops.operations(case, rows)},
        **{"wall_flops": 100e9, "baseline_kernel": "unfused, a library call an operation"},
        "results": {"torch.nn": entry(base, base), **{name: entry(seconds, base) for name, seconds in ours.items()}},
    }


@pytest.fixture
def result() -> dict:
    rows = [
        row(Case(cell, mode, T, B, H, H), 4e-3, rnnkernels=2e-3 if H == 64 else 5e-3, jax=4e-3)
        for cell in ("lstm", "gru")
        for mode in ("inference", "training")
        for T, B in ((10, 1), (100, 1), (100, 16))
        for H in (64, 256)
    ]
    rows[0]["results"]["jax"] = {"unsupported": "a scan has no ragged sequences"}
    rows[1]["results"]["rnnkernels"] |= {"peak_bytes": 3 << 20, "cold": entry(9e-3, 4e-3)}
    return {
        **{"schema": results.SCHEMA, "date": "2026-01-01", "commit": "0" * 40, "device": "cpu", "baseline": "torch.nn"},
        **{"machine": {"name": "2 cores made up", "torch_isa": "AVX2"}, "versions": {"torch": "2.13.0"}},
        **{"settings": {"threads": 2, "min_rounds": 3, "seed": 0}, "absent": {"haste": "haste is not installed"}},
        **{"load_average_before": 0.1, "load_average_after": 0.2, "wall": LIMITS, "cases": rows},
    }


def slower(result: dict, factor: float, name: str = "rnnkernels") -> dict:
    after = copy.deepcopy(result)
    base = after["cases"][0]["results"]["torch.nn"]["median_s"]
    after["cases"][0]["results"][name] = entry(factor * result["cases"][0]["results"][name]["median_s"], base)
    return after


# --- compare -----------------------------------------------------------------------------------------------------------------


def test_a_slow_down_beyond_the_spread_is_significant(result):
    (first, *rest) = compare.changes(result, slower(result, 1.5), ["rnnkernels"])
    assert first.ratio == pytest.approx(1.5) and first.significant
    assert all(change.ratio == 1 and not change.significant for change in rest)
    assert len(rest) == len(result["cases"]) - 1


def test_a_slow_down_within_the_spread_is_not_significant(result):
    assert not any(change.significant for change in compare.changes(result, slower(result, 1.08)))


def test_speed_ups_are_compared_where_the_machine_was_slower_as_a_whole(result):
    after = copy.deepcopy(result)
    for one in after["cases"]:
        for name, found in one["results"].items():
            if "median_s" in found:
                one["results"][name] = entry(3 * found["median_s"], 3 * one["results"]["torch.nn"]["median_s"])
        base = 4e-3 * 3
        for name, found in one["results"].items():
            if "median_s" in found:
                one["results"][name] = entry(found["median_s"], base)
    assert all(change.significant for change in compare.changes(result, after))
    by_speedup = compare.changes(result, after, by="speedup")
    assert by_speedup and not any(change.significant for change in by_speedup)
    assert "torch.nn" not in {change.provider for change in by_speedup}


def test_compare_fails_above_a_limit_and_only_then(result, tmp_path, capsys):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    results.save(result, before)
    results.save(slower(result, 1.3), after)
    arguments = ["compare", str(before), str(after), "--providers", "rnnkernels"]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--fail-above", "1.4"]) == 0
    capsys.readouterr()
    assert command.main([*arguments, "--fail-above", "1.2"]) == 1
    printed = capsys.readouterr()
    assert "slower: LSTM inference, dense: T=10 B=1 I=64 H=64, rnnkernels: 1.300" in printed.err
    assert "| rnnkernels | 24 | 1.011 | 1 | 0 |" in printed.out


def test_what_was_not_the_same_is_said(result):
    after = copy.deepcopy(result)
    after["machine"]["name"] = "another"
    assert "machine: 2 cores made up before, another after" in compare.render(result, after, compare.changes(result, after))


def test_files_without_a_common_case_fail(result, tmp_path, capsys):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    results.save(result, before)
    results.save({**result, "cases": []}, after)
    assert command.main(["compare", str(before), str(after), "--fail-above", "2"]) == 1
    assert "no case in common" in capsys.readouterr().out


# --- explain -------------------------------------------------------------------------------------------------------------------


def test_an_explanation_names_the_limit_that_binds(result):
    case = Case("lstm", "inference", 50, 64, 512, 512)
    measured = row(case, 0.4, rnnkernels=0.3)
    text = explain.render(result, measured)
    operations = 2 * 50 * 64 * 4 * 512 * 1024
    assert f"{operations * 1e-9:.3g} GFLOP in matrix products, 50 % of them one step after the other" in text
    assert "rnnkernels takes 300 ms: 2.24 times the limit that binds, products; 45 % of the multiply-add wall" in text
    assert "8 MiB of weights, 4 MiB of them needed at every step" in text


def test_a_small_recurrence_is_bound_by_its_steps(result):
    case = Case("gru", "inference", 1000, 1, 8, 8)
    assert "the limit that binds, steps;" in explain.render(result, row(case, 1e-3, rnnkernels=1e-4))


def test_weights_that_do_not_fit_bind_a_batch_of_one(result):
    case = Case("gru", "inference", 100, 1, 1024, 1024)
    assert "the limit that binds, weights;" in explain.render(result, row(case, 1.0, rnnkernels=0.5))


def test_the_kernels_division_is_told(result, native_library):
    wide = explain.render(result, row(Case("lstm", "inference", 50, 64, 512, 512), 1.0, rnnkernels=0.5))
    assert "2 slices of the batch: 2 of 2 threads busy" in wide
    single = explain.render(result, row(Case("lstm", "inference", 50, 1, 512, 512), 1.0, rnnkernels=0.5))
    assert "2 threads share the units of every step" in single and "wait for each other at each: 0.005 ms at least" in single


def test_explain_measures_a_case_of_its_own(capsys, threads):
    arguments = ["explain", "--cell", "gru", "--mode", "training", "--T", "4", "--B", "2", "--H", "8", "--layers", "2"]
    assert command.main([*arguments, "--threads", "1", "--seconds", "0.001"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("GRU training, 2 layers: T=4 B=2 I=8 H=8\n")
    assert "torch.nn ran  unfused" in text and "% of the multiply-add wall" in text
    passes = text.partition("the passes of rnnkernels\n")[2].splitlines()
    assert [line.split()[0] for line in passes[:2]] == ["forward", "backward"] and "ms" in passes[1]


def test_what_threads_bring_is_told_from_one():
    case = Case("gru", "inference", 5, 2, 8, 8)
    text = explain.render_scaling(row(case, 1.0, rnnkernels=0.5), row(case, 1.0, rnnkernels=0.9), threads=2)
    assert text == "On one thread rnnkernels takes 900 ms: 2 threads are 1.80 times as fast."


def test_explain_reads_a_file_and_says_if_the_case_is_not_in_it(result, tmp_path, capsys):
    results.save(result, tmp_path / "file.json")
    arguments = ["explain", "--file", str(tmp_path / "file.json"), "--cell", "lstm", "--T", "100", "--B", "16"]
    assert command.main([*arguments, "--H", "256"]) == 0
    assert "rnnkernels        " in capsys.readouterr().out
    assert command.main([*arguments, "--H", "3"]) == 2
    assert "has no LSTM inference, dense: T=100 B=16 I=3 H=3" in capsys.readouterr().err


def test_the_targets_are_judged_from_a_file(result, tmp_path, capsys):
    results.save(result, tmp_path / "file.json")
    assert command.main(["targets", str(tmp_path / "file.json")]) == 0
    text = capsys.readouterr().out
    assert "| GRU inference | torch.nn | ≥ 4 | 1.26 | 6 | 0.80: T=10 B=1 I=256 H=256 | **no** |" in text
    assert "targets met" in text and "100 GFLOP/s on 2 threads" in text


# --- report and figures ----------------------------------------------------------------------------------------------------


def test_the_report_shows_peers_the_wall_and_who_is_missing(result):
    text = report.render(result)
    assert "float32 50 GFLOP/s on 1 thread, 100 GFLOP/s on 2 threads" in text
    assert "| LSTM inference, dense | 6 | 1.26× | 0.80× | 2.00× | 0 to 336 % |" in text  # noqa: RUF001
    assert "Not measured: haste: haste is not installed." in text
    assert "| LSTM training, dense | 1.26× (0.80×) |" in text  # noqa: RUF001  (against JAX: 2 and 0.8 times)
    assert "- not timed: LSTM inference, dense: T=10 B=1 I=64 H=64: a scan has no ragged sequences" in text
    assert (
        "| LSTM inference, dense: T=10 B=1 I=256 H=256 | unfused, a library call an operation | 3 | 2 |  | 9 |  | 3.0 |" in text
    )


def test_every_figure_is_drawn_and_says_what_from(result, tmp_path, capsys):
    path = tmp_path / "file.json"
    results.save({**result, "cases": [one for one in result["cases"] if one["group"] == "GRU training, dense"]}, path)
    assert command.main(["report", str(path), "--figures", str(tmp_path / "figures")]) == 0
    drawn = {file.stem: file for file in (tmp_path / "figures").glob("*.png")}
    assert drawn.keys() == figures.FIGURES.keys()
    assert "![speedups](speedups.png)" in (tmp_path / "figures" / "report.md").read_text()
    assert {figures.source_of(file) for file in drawn.values()} == {figures.source(path)}
    path.write_text(path.read_text() + " ")
    assert figures.source_of(drawn["steps"]) != figures.source(path)


def test_a_result_without_a_figures_cases_has_no_such_figure(result, tmp_path):
    path = tmp_path / "file.json"
    only = {**result, "wall": {"missing": "no reason"}, "cases": [one for one in result["cases"] if one["case"]["B"] > 1]}
    results.save(only, path)
    assert [file.stem for file in figures.draw_all(path, only, tmp_path)] == ["speedups"]


# --- what the README shows of a GPU ------------------------------------------------------------------------------------------


def gpu_row(mode: str, H: int, precision: str = "bfloat16", triton: float = 1.0, **cuda: float) -> dict:
    """A row of the stage speed: the speed-up of the CUDA kernels by each clock."""
    plans = {"cuda plan": {clock: {"speedup": ratio} for clock, ratio in cuda.items()}}
    plans["triton plan"] = {"kernel": {"speedup": triton}}
    case = Case("lstm", mode, 512, 16, H, H).as_dict()
    return {"case": case, "precision": precision, "cudnn_algorithm": ["STANDARD", "STANDARD"], "results": plans}


@pytest.fixture
def speed() -> dict:
    conditions = {"machine": "H1000", "torch": "2.13.0", "cudnn": 91901, "commit": "0123abc+", "date": "2026-01-01"}
    rows = [
        gpu_row("inference", 64, kernel=4.0, wall=8.0),
        gpu_row("inference", 256, kernel=1.0, wall=2.0, triton=0.25),
        gpu_row("training", 64, "tf32", kernel=0.5, wall=0.8),
        {**gpu_row("training", 256, "tf32"), "results": {}, "error": "the kernel hangs"},
    ]
    return {"conditions": conditions, "rows": rows}


@pytest.fixture
def tuning(speed) -> dict:
    def layer(backward: bool, B: int, schedule: str, microseconds: float, backend: str = "cuda") -> dict:
        times = [{"choice": {"schedule": name}, "median_s": 128e-6 * us} for name, us in (("slow", 99), (schedule, microseconds))]
        case = Case("lstm", "training", 128, B, 64, 64).as_dict()
        row = {"backend": backend, "case": case, "precision": "bfloat16", "backward": backward}
        return {**row, "fastest": {"schedule": schedule}, "times": times}

    rows = [layer(False, 1, "cluster", 0.95), layer(False, 16, "grid", 1.24), layer(True, 16, "stepwise", 12.34)]
    return {"conditions": speed["conditions"], "rows": [*rows, layer(False, 1, "program", 0.1, backend="triton")]}


def test_the_table_of_steps_has_the_fastest_schedule_of_each_layer(tuning):
    first, _, line = gpu.steps(tuning).splitlines()
    assert first.startswith("| H | LSTM bfloat16 forward | backward | LSTM float32 in TF32 forward |")
    assert line.startswith("| 64 | 0.95/1.2g | -/12* | -/- |")
    assert "batches of 1 / 16, the fastest schedule of each" in gpu.steps_conditions(tuning)


def test_the_table_of_a_gpu_has_each_clock_and_the_worst_case(speed, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    write_json(tmp_path / "speed.json", speed)
    text = report.block("gpu", "speed.json")
    assert "| speed-up (worst case) | LSTM inference | LSTM training |" in text
    assert "| bfloat16, kernels | 2.00× (1.00×) |  |\n| bfloat16, wall time | 4.00× (2.00×) |  |" in text  # noqa: RUF001
    assert "| float32 in TF32, kernels |  | 0.50× (0.50×) |" in text  # noqa: RUF001
    assert "Measured on one H1000, torch 2.13.0, cuDNN 9.19, commit 0123abc with changes, 2026-01-01: 3 cases" in text
    assert "CUDA kernels: inference 2.00×, training 0.50×; slower than torch.nn in 1 of 3 cases, at worst" in text  # noqa: RUF001
    assert "slower than torch.nn in 1 of 3 cases, at worst 0.25× (LSTM inference, bfloat16, H=256 B=16)" in text  # noqa: RUF001


def test_the_cases_lost_to_cudnn_are_listed_with_its_algorithm(speed):
    _, _, *lines = gpu.losses(speed).splitlines()
    assert lines == ["| 0.50× | LSTM training, float32 in TF32, H=64 B=16 | `STANDARD` |"]  # noqa: RUF001


def test_the_picture_of_a_gpu_shows_every_case_that_was_timed(speed):
    tree = ElementTree.fromstring(gpu.heat_map(speed))
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if re.fullmatch(r"\d\.\d\d", text)] == ["4.00", "1.00", "0.50"]
    assert "LSTM training, float32 in TF32" in texts
    colours = [element.get("fill") for element in tree.iter("{http://www.w3.org/2000/svg}rect")]
    assert colours[2] == "#f7f7f7"  # as fast as torch.nn: neither blue nor red


def test_readme_and_picture_follow_a_runs_files(speed, tuning, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "docs").mkdir()
    steps = "<!-- gpu-steps: tuning.json -->\n<!-- end of gpu-steps -->\n"
    report.README.write_text(f"{steps}<!-- gpu: other.json -->\nstale\n<!-- end of gpu -->\n")
    write_json(tmp_path / "tuning.json", tuning)
    write_json(tmp_path / "speed.json", speed)
    monkeypatch.setattr(acceptance.report, "render", lambda directory: "the report")
    assert acceptance.main(["report", str(tmp_path), "--update-docs"]) == 0
    assert capsys.readouterr().out == "the report"
    assert report.README.read_text() == f"{report.block('gpu-steps', 'tuning.json')}\n{report.block('gpu', 'speed.json')}\n"
    assert report.stale_tables(report.README) == []
    assert (tmp_path / gpu.FIGURE).read_text() == gpu.heat_map(speed)


def test_the_committed_picture_is_what_the_readmes_result_file_renders_to():
    (name,) = re.findall(r"<!-- gpu: (\S+) -->", report.README.read_text(encoding="utf-8"))
    committed = (report.ROOT / gpu.FIGURE).read_text(encoding="utf-8")
    rendered = gpu.heat_map(read_json(report.ROOT / name))
    assert committed == rendered, "run: python -m benchmarks.gpu_acceptance report DIR --update-docs"


class Benchmark:
    """What pytest-benchmark's fixture is, as far as it is used."""

    def __init__(self):
        self.group, self.extra_info, self.calls = None, {}, 0

    def __call__(self, function):
        self.calls += 1
        function()


@pytest.mark.parametrize("case", [case for case in test_speed.CASES if case.mode == "streaming"], ids=str)
def test_the_entries_for_pytest_benchmark_say_what_they_time(case):
    benchmark = Benchmark()
    test_speed.test_speed(benchmark, case)
    assert benchmark.calls == 1 and benchmark.group == case.group
    assert {"case", "operations", "threads", "machine", "commit", "isa"} == set(benchmark.extra_info)
    assert Case(**json.loads(json.dumps(benchmark.extra_info))["case"]) == case
