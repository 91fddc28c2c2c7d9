"""``python -m benchmarks`` times only what computes the right thing, and its files say what was measured."""

import json
import re

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import machine, providers, report, runner
from benchmarks.cases import GRIDS, Case, make_problem
from benchmarks.gate import Gate, Mismatch
from benchmarks.timing import Contestant, interleave

QUICK = ["--seconds", "0.001", "--min-rounds", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def keep_thread_count():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_result(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks") / "machine" / "tiny.json"
    names = "rnnkernels,rnnkernels:reference"
    assert command.main(["run", "--grid", "tiny", "--out", str(out), "--providers", names, *QUICK]) == 0
    return json.loads(out.read_text())


def _wrong(shift):
    """A provider that is torch.nn but for ``shift`` added to every output."""

    class ShiftedLSTM(torch.nn.LSTM):
        def forward(self, *args):
            output, hidden = super().forward(*args)
            return output + shift, hidden

    return providers.Provider("wrong", {"lstm": ShiftedLSTM})


CASE = Case("lstm", "inference", 4, 3, 5, 6)


def test_result_file_says_on_what_with_what_and_how_it_was_measured(tiny_result):
    assert tiny_result["schema"] == runner.SCHEMA
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", tiny_result["date"])
    assert tiny_result["versions"]["torch"] == torch.__version__
    assert tiny_result["settings"] == {"seconds": 0.001, "min_rounds": 2, "threads": 1, "seed": 0}
    assert {"name", "cpu", "torch_isa", "physical_cores"} <= set(tiny_result["machine"])
    assert {"commit", "load_average_before", "load_average_after", "baseline"} <= set(tiny_result)


def test_result_file_has_the_times_of_every_case_and_provider(tiny_result):
    assert [Case(**row["case"]) for row in tiny_result["cases"]] == list(GRIDS["tiny"]())
    for row in tiny_result["cases"]:
        assert row["group"] == Case(**row["case"]).group
        assert set(row["results"]) == {"torch.nn", "rnnkernels", "rnnkernels:reference"}
        for entry in row["results"].values():
            assert 0 < entry["p20_s"] <= entry["median_s"] <= entry["p80_s"]
            assert entry["speedup_p20"] <= entry["speedup"] <= entry["speedup_p80"]
            assert entry["budget_used"] <= 1
            assert entry["rounds"] >= 2


def test_the_baseline_is_as_fast_as_itself(tiny_result):
    assert {row["results"]["torch.nn"]["speedup"] for row in tiny_result["cases"]} == {1.0}


def test_no_host_name_gets_into_a_result_file(tiny_result):
    import platform

    assert platform.node() not in json.dumps(tiny_result)


def test_a_wrong_provider_is_refused_and_not_timed():
    settings = runner.Settings(seconds=0.001, min_rounds=2, threads=1, seed=0)
    result = runner.run([CASE], [providers.make("torch.nn"), _wrong(1e-3)], settings)
    entry = result["cases"][0]["results"]["wrong"]
    assert "median_s" not in entry
    assert "the error of output is" in entry["error"]
    assert runner.failures(result) == [f"{CASE}: {entry['error']}"]
    assert entry["error"] in report.losses(result, "wrong")


def test_a_refused_provider_makes_the_command_fail(monkeypatch, tmp_path, capsys):
    real = providers.make
    monkeypatch.setattr(providers, "make", lambda name: _wrong(1e-3) if name == "wrong" else real(name))
    arguments = ["run", "--grid", "tiny", "--only", "LSTM inference, dense", "--providers", "wrong", *QUICK]
    assert command.main([*arguments, "--out", str(tmp_path / "wrong.json")]) == 1
    assert "refused: LSTM inference, dense" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_gate_lets_torch_pass_and_stops_an_error_of_two_percent(dtype):
    problem = make_problem(Case("lstm", "training", 6, 3, 5, 6, dtype=dtype), seed=0)
    gate = Gate(problem)
    assert gate.check("torch.nn", providers.make("torch.nn").prepare(problem)()) <= 1
    with pytest.raises(Mismatch, match="output"):
        gate.check("wrong", _wrong(0.02).prepare(problem)())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r | {"h_n": r["h_n"] * float("nan")}, "the error of h_n is inf"),
        (lambda r: r | {"c_n": r["c_n"][:, :1]}, r"c_n has shape \(1, 1, 6\)"),
        (lambda r: {"output": r["output"]}, r"returned \['output'\]"),
    ],
)
def test_the_gate_stops_nans_wrong_shapes_and_missing_results(spoil, message):
    problem = make_problem(CASE, seed=0)
    results = providers.make("torch.nn").prepare(problem)()
    with pytest.raises(Mismatch, match=message):
        Gate(problem).check("wrong", spoil(results))


def test_a_backend_that_cannot_serve_says_why_in_place_of_times(monkeypatch):
    provider = providers.Provider("picky", {}, unsupported=lambda case: "it does not like this case")
    settings = runner.Settings(seconds=0.001, min_rounds=2, threads=1, seed=0)
    result = runner.run([CASE], [providers.make("torch.nn"), provider], settings)
    assert result["cases"][0]["results"]["picky"] == {"unsupported": "it does not like this case"}
    assert runner.failures(result) == []
    assert f"not timed: {CASE}: it does not like this case" in report.losses(result, "picky")


def test_unknown_providers_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown provider 'cudnn'"):
        providers.make("cudnn")


def test_the_same_seed_gives_the_same_problem():
    case = Case("gru", "training", 9, 4, 5, 6, packed=True)
    first, second = make_problem(case, 1), make_problem(case, 1)
    assert torch.equal(first.input.batch_sizes, second.input.batch_sizes)
    assert torch.equal(first.input.data, second.input.data)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_a_contestant_is_called_within_its_scope_and_only_there():
    from contextlib import contextmanager

    inside = []

    @contextmanager
    def scope():
        inside.append(True)
        yield
        inside.pop()

    def step():
        assert inside

    contestants = {"base": Contestant(step, scope), "other": Contestant(step, scope)}
    timings = interleave(contestants, "base", seconds=0, min_rounds=3, threads=1, seed=0)
    assert {timing.rounds for timing in timings.values()} == {3}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_every_case_of_the_grid_is_different_and_has_a_class(mode):
    cases = [case for case in GRIDS["small"]() if case.mode == mode]
    assert len({str(case) for case in cases}) == len(cases)
    assert {"dense", "packed", "bidirectional", "projection", "bfloat16"} <= {case.variant for case in cases}


def test_the_report_shows_every_class_every_loss_and_every_case(tiny_result):
    text = report.render(tiny_result)
    for row in tiny_result["cases"]:
        assert f"| {row['group']} |" in text
        assert f"| {Case(**row['case'])} |" in text
    slower = [row for row in tiny_result["cases"] if row["results"]["rnnkernels:reference"]["speedup"] < 1]
    assert f"Slower than torch.nn in {len(slower)} of {len(tiny_result['cases'])} cases" in text


def test_machines_are_named_by_hardware():
    description = machine.describe()
    assert re.match(r"\d+ cores? \S", description["name"])
    assert machine.slug("2 cores Zen 4") == "2-cores-zen-4"


def test_readme_table_is_what_its_result_file_renders_to():
    assert report.readme_is_current(), "run: python -m benchmarks report FILE --update-readme"


def test_readme_table_follows_the_result_file(tmp_path, monkeypatch, tiny_result):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_result))
    report.README.write_text("before\n<!-- benchmark: other.json -->\nstale\n<!-- end of benchmark -->\nafter\n")
    report.update_readme(path)
    assert report.readme_is_current()
    assert report.README.read_text().startswith("before\n<!-- benchmark: tiny.json -->\n| speed-up (worst case) | LSTM inference")
    tiny_result["cases"][0]["results"]["rnnkernels"]["speedup"] = 123.0
    path.write_text(json.dumps(tiny_result))
    assert not report.readme_is_current()
