"""``python -m benchmarks`` times only what computes the right thing, and its files say what was measured."""

import copy
import dataclasses
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import figures, machine, providers, report, results, runner
from benchmarks.cases import Case, make_problem
from benchmarks.gate import Gate, Mismatch
from benchmarks.grids import GRIDS
from benchmarks.providers import modules
from benchmarks.timing import CacheFlush, Contestant, interleave, largest_cache

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
    arguments = ["run", "--grid", "tiny", "--out", str(out), "--providers", names, "--cold-rounds", "2", *QUICK]
    assert command.main(arguments) == 0
    return json.loads(out.read_text())


def _wrong(shift, name="wrong"):
    """A provider that is torch.nn but for ``shift`` added to every output."""

    class ShiftedLSTM(torch.nn.LSTM):
        def forward(self, *args):
            output, hidden = super().forward(*args)
            return output + shift, hidden

    return providers.Provider(name, lambda problem: modules.prepare({"lstm": ShiftedLSTM}, problem))


def _compute(name, problem):
    return providers.make(name).prepare(problem).results()


def _quick(**changes):
    return runner.Settings(**{"seconds": 0.001, "min_rounds": 2, "threads": 1, "seed": 0, **changes})


CASE = Case("lstm", "inference", 4, 3, 5, 6)


def test_result_file_says_on_what_with_what_and_how_it_was_measured(tiny_result):
    assert tiny_result["schema"] == results.SCHEMA
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", tiny_result["date"])
    assert tiny_result["versions"]["torch"] == torch.__version__
    assert tiny_result["settings"] == {
        **{"seconds": 0.001, "min_rounds": 2, "threads": 1, "seed": 0},
        **{"cold_rounds": 2, "memory": True, "device": "cpu", "tf32": None},
    }
    assert {"name", "cpu", "torch_isa", "physical_cores"} <= set(tiny_result["machine"])
    assert {"float32_matmul_precision", "cudnn.allow_tf32"} <= set(tiny_result["switches"])
    assert {"commit", "clocks", "environment", "load_average_before", "load_average_after"} <= set(tiny_result)
    assert tiny_result["baseline"] == "torch.nn" and tiny_result["device"] == "cpu" and tiny_result["absent"] == {}


def test_result_file_has_the_times_of_every_case_and_provider(tiny_result):
    assert [Case(**row["case"]) for row in tiny_result["cases"]] == list(GRIDS["tiny"]())
    for row in tiny_result["cases"]:
        assert row["group"] == Case(**row["case"]).group
        assert row["operations"] > 0 and (row["others_share"] is None or 0 <= row["others_share"] <= 1)
        assert set(row["results"]) == {"torch.nn", "rnnkernels", "rnnkernels:reference"}
        for entry in row["results"].values():
            assert len(entry["samples_s"]) == entry["rounds"]
            assert 0 < entry["cold"]["p20_s"] <= entry["cold"]["median_s"]
            if row["wall_flops"] is not None:
                reached = row["operations"] / entry["median_s"] / row["wall_flops"]
                assert entry["wall_share"] == pytest.approx(reached, abs=1e-4)
            assert ("peak_bytes" in entry) == (row["case"]["mode"] == "training")
            assert 0 < entry["p20_s"] <= entry["median_s"] <= entry["p80_s"]
            assert entry["speedup_p20"] <= entry["speedup"] <= entry["speedup_p80"]
            assert entry["budget_used"] <= 1
            assert entry["rounds"] >= 2


def test_the_baseline_is_as_fast_as_itself(tiny_result):
    assert {row["results"]["torch.nn"]["speedup"] for row in tiny_result["cases"]} == {1.0}


def test_no_host_name_gets_into_a_result_file(tiny_result):
    import platform

    assert not re.search(rf"\b{re.escape(platform.node())}\b", json.dumps(tiny_result))


def test_a_wrong_provider_is_refused_and_not_timed():
    result = runner.run([CASE], [providers.make("torch.nn"), _wrong(1e-3)], _quick())
    entry = result["cases"][0]["results"]["wrong"]
    assert "median_s" not in entry
    assert "the error of output is" in entry["error"]
    assert runner.failures(result) == {"wrong": [f"{CASE}: {entry['error']}"]}
    assert entry["error"] in report.losses(result, "wrong")


@pytest.mark.parametrize(("name", "status"), [("rnnkernels", 1), ("jax", 0)])
def test_a_refused_result_of_this_package_makes_the_command_fail_a_peers_does_not(name, status, monkeypatch, tmp_path, capsys):
    real = providers.make
    monkeypatch.setattr(providers, "make", lambda n, device: _wrong(1e-3, name) if n == name else real(n, device))
    arguments = ["run", "--grid", "tiny", "--only", "LSTM inference, dense", "--providers", name, *QUICK]
    assert command.main([*arguments, "--out", str(tmp_path / "wrong.json")]) == status
    assert "refused: LSTM inference, dense" in capsys.readouterr().err


def test_a_provider_that_fails_is_refused_and_the_others_are_measured():
    def fail(problem):
        raise ArithmeticError("it cannot count")

    result = runner.run([CASE], [providers.make("torch.nn"), providers.Provider("failing", fail)], _quick())
    entries = result["cases"][0]["results"]
    assert entries["failing"] == {"error": "failing failed: ArithmeticError: it cannot count"}
    assert entries["torch.nn"]["median_s"] > 0 and runner.failures(result).keys() == {"failing"}


def test_a_baseline_that_fails_ends_the_run():
    failing = dataclasses.replace(providers.make("torch.nn"), prepare=lambda problem: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run([CASE], [failing], _quick())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_gate_lets_torch_pass_and_stops_an_error_of_two_percent(dtype):
    problem = make_problem(Case("lstm", "training", 6, 3, 5, 6, dtype=dtype), seed=0)
    gate = Gate(problem)
    assert gate.check("torch.nn", _compute("torch.nn", problem)) <= 1
    with pytest.raises(Mismatch, match="output"):
        gate.check("wrong", _wrong(0.02).prepare(problem).results())


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
    with pytest.raises(Mismatch, match=message):
        Gate(problem).check("wrong", spoil(_compute("torch.nn", problem)))


def test_a_backend_that_cannot_serve_says_why_in_place_of_times():
    picky = modules.torch_nn("picky")
    picky = dataclasses.replace(picky, unsupported=lambda case: "it does not like this case")
    result = runner.run([CASE], [providers.make("torch.nn"), picky], _quick())
    assert result["cases"][0]["results"]["picky"] == {"unsupported": "it does not like this case"}
    assert runner.failures(result) == {}
    assert f"not timed: {CASE}: it does not like this case" in report.losses(result, "picky")


def test_unknown_providers_are_refused_by_name(capsys):
    with pytest.raises(ValueError, match="unknown provider 'cudnn'"):
        providers.make("cudnn")
    with pytest.raises(SystemExit):
        command.main(["run", "--providers", "peers,cudnn"])
    assert "'cudnn' is none of torch.nn" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--min-rounds", 1), ("--cold-rounds", 1), ("--threads", 0)])
def test_too_few_rounds_for_a_spread_and_no_threads_are_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        command.main(["run", option, str(value)])
    assert f"argument {option}: {value} is less than {value + 1}" in capsys.readouterr().err


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
    samples, calls = interleave(contestants, seconds=0, min_rounds=3, seed=0)
    assert {name: len(own) for name, own in samples.items()} == {"base": 3, "other": 3}
    assert min(calls.values()) > 1


def test_the_machine_is_measured_once_a_round_outside_of_all_scopes():
    measured = []
    contestants = {"base": Contestant(lambda: None, lambda: torch.inference_mode())}
    samples, _ = interleave(
        contestants, seconds=0, min_rounds=4, seed=0, beside=lambda: measured.append(torch.is_inference_mode_enabled())
    )
    assert measured == [False] * 4
    assert {name: len(own) for name, own in samples.items()} == {"base": 4}


def test_caches_are_emptied_before_every_cold_call_and_only_one_call_is_timed():
    events = []
    contestants = {name: Contestant(lambda name=name: events.append(name), nullcontext) for name in "ab"}
    interleave(contestants, seconds=0, min_rounds=3, seed=0, before=lambda: events.append("flush"))
    timed = events[2:]  # behind one call of each that is not
    assert timed[0::2] == ["flush"] * 6 and sorted(timed[1::2]) == ["a"] * 3 + ["b"] * 3


def test_what_empties_the_caches_is_larger_than_they_are():
    flush = CacheFlush("cpu")
    flush()
    assert flush.memory.numel() * flush.memory.element_size() == 2 * largest_cache("cpu") >= 2**20
    assert flush.memory[0] == flush.memory[-1] == 1


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_every_case_of_the_grid_is_different_and_has_a_class(mode):
    cases = [case for case in GRIDS["small"]() if case.mode == mode]
    assert len({str(case) for case in cases}) == len(cases)
    assert {"dense", "packed", "bidirectional", "projection", "bfloat16"} <= {case.variant for case in cases}


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no type here is finer than float64")
def test_the_oracle_of_a_float64_case_is_finer_than_what_it_judges():
    """Its weight gradients against the equations in extended precision."""
    case = Case("lstm", "training", 61, 33, 24, 20, "float64")
    problem = make_problem(case, seed=1)
    w, u, b_ih, b_hh = (tensor.numpy().astype(np.longdouble) for tensor in problem.weights.values())
    x, grad_output = (tensor.numpy().astype(np.longdouble) for tensor in (problem.input, problem.grad_output))
    h = c = np.zeros((case.B, case.H), np.longdouble)
    steps = []
    for t in range(case.T):
        i, f, g, o = np.split(x[t] @ w.T + b_ih + h @ u.T + b_hh, 4, axis=1)
        i, f, o, g = *(1 / (1 + np.exp(-a)) for a in (i, f, o)), np.tanh(g)
        steps.append((i, f, g, o, c))
        c = f * c + i * g
        h = o * np.tanh(c)
        steps[-1] += (c,)
    expected, dh, dc = np.zeros_like(w), np.zeros_like(h), np.zeros_like(c)
    for t in reversed(range(case.T)):
        i, f, g, o, c_prev, c = steps[t]
        dh, tanh_c = dh + grad_output[t], np.tanh(c)
        dc = dc + dh * o * (1 - tanh_c**2)
        parts = dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
        gates = np.concatenate(parts, axis=1)
        expected, dh, dc = expected + gates.T @ x[t], gates @ u, dc * f
    error = np.abs(Gate(problem).oracle["weight_ih_l0"].numpy() - expected).max() / np.abs(expected).max()
    assert error < 4 * np.finfo(np.float64).eps


def test_the_report_shows_every_class_every_loss_and_every_case(tiny_result):
    text = report.render(tiny_result)
    for row in tiny_result["cases"]:
        assert f"| {row['group']} |" in text
        assert f"| {Case(**row['case'])} |" in text
    slower = [row for row in tiny_result["cases"] if row["results"]["rnnkernels:reference"]["speedup"] < 1]
    assert f"Slower than torch.nn in {len(slower)} of {len(tiny_result['cases'])} cases" in text


def test_the_readme_names_the_cases_that_were_refused(tiny_result):
    result = copy.deepcopy(tiny_result)
    for row in result["cases"]:
        row["results"]["rnnkernels"] = row["results"]["rnnkernels:reference"]
    assert "Not timed" not in report._readme_losses(result)
    wrong = result["cases"][0]
    wrong["results"]["rnnkernels"] = {"error": "rnnkernels: the error of h_n is 3 times its budget"}
    text = report._readme_losses(result)
    assert f"of {len(result['cases']) - 1} cases" in text
    assert f"Not timed, because an error was above its budget: {Case(**wrong['case'])}." in text


def test_what_other_processes_take_is_told_from_what_this_one_takes():
    others = machine.Others()
    if others.begin is None:
        pytest.skip("the system does not say")
    # 10 seconds of two processors, 12 of them busy, 9 by this process.
    others.begin = tuple(now - passed for now, passed in zip(others._now(), (20.0, 12.0, 9.0), strict=True))
    assert others.share() == pytest.approx(0.15, abs=0.02)


def test_machines_are_named_by_hardware():
    description = machine.describe()
    assert re.match(r"\d+ cores? \S", description["name"])
    assert machine.slug("2 cores Zen 4") == "2-cores-zen-4"


@pytest.mark.parametrize("document", report.documents(), ids=lambda path: path.name)
def test_tables_in_documents_are_what_their_result_files_render_to(document):
    assert report.stale_tables(document) == [], "run: python -m benchmarks report FILE --update-docs"


@pytest.mark.parametrize("kind", ["benchmark", "gpu"])
def test_the_readme_has_its_tables(kind):
    assert report.README.read_text(encoding="utf-8").count(f"<!-- {kind}: ") == 1


def test_figures_are_drawn_from_committed_result_files():
    sources = {figures.source(path) for path in (report.ROOT / "benchmarks" / "results").glob("*/*.json")}
    folders = ("docs", "benchmarks/results")
    drawn = [p for folder in folders for p in (report.ROOT / folder).rglob("*.png") if p.stem in figures.FIGURES]
    stale = [path for path in drawn if figures.source_of(path) not in sources]
    assert stale == [], "run: python -m benchmarks report FILE --figures DIR"


def test_tables_follow_their_result_files(tmp_path, monkeypatch, tiny_result):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    path, guide = tmp_path / "tiny.json", tmp_path / "docs" / "guide.md"
    results.save(tiny_result, path)
    report.README.write_text("before\n<!-- benchmark: other.json -->\nstale\n<!-- end of benchmark -->\nafter\n")
    guide.parent.mkdir()
    guide.write_text("<!-- targets: tiny.json -->\n<!-- end of targets -->\n")
    report.update_readme(path)
    report.update_documents()
    assert report.README.read_text().startswith("before\n<!-- benchmark: tiny.json -->\n| speed-up (worst case) | LSTM inference")
    assert guide.read_text().startswith("<!-- targets: tiny.json -->\n| target | against |")
    assert [report.stale_tables(document) for document in (report.README, guide)] == [[], []]
    tiny_result["cases"][0]["results"]["rnnkernels"] |= {"speedup": 123.0, "samples_s": [1e-9] * 9}
    tiny_result["cases"][0]["results"]["torch.nn"]["samples_s"] = [1.0] * 9
    results.save(tiny_result, path)
    assert [report.stale_tables(document) for document in (report.README, guide)] == [["tiny.json"], ["tiny.json"]]


# --- one run, several goes -------------------------------------------------------------------------------------------------


def test_a_cut_run_is_taken_up_again_where_it_was_cut(tmp_path, monkeypatch):
    out = tmp_path / "cut.json"
    arguments = [
        "run",
        "--cells",
        "gru",
        "--modes",
        "inference",
        "--T",
        "2,3,4",
        "--B",
        "1",
        "--H",
        "5",
        "--out",
        str(out),
        *QUICK,
    ]
    measure, measured = runner._measure, []

    def cut(problem, *rest):
        measured.append(problem.case.T)
        if measured == [2, 3]:
            raise KeyboardInterrupt
        return measure(problem, *rest)

    monkeypatch.setattr(runner, "_measure", cut)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    first = results.load(out)
    assert [row["case"]["T"] for row in first["cases"]] == [2]
    assert command.main([*arguments, "--resume"]) == 0
    whole = results.load(out)
    assert measured == [2, 3, 3, 4]
    assert [row["case"]["T"] for row in whole["cases"]] == [2, 3, 4]
    assert whole["cases"][0] == first["cases"][0] and whole["wall"] == first["wall"]
    for row, share in zip(whole["cases"], (0.01, 0.5, None), strict=True):
        row["others_share"] = share
    results.save(whole, out)
    assert command.main([*arguments, "--resume", "--again-above", "0.05"]) == 0
    assert measured == [2, 3, 3, 4, 3]


def test_a_run_is_not_taken_up_under_other_settings(tmp_path, capsys):
    out = tmp_path / "other.json"
    arguments = ["run", "--cells", "gru", "--modes", "inference", "--T", "2", "--B", "1", "--H", "5", "--out", str(out), *QUICK]
    assert command.main(arguments) == 0
    before = out.read_text()
    assert command.main([*arguments, "--again-above", "0.05"]) == 2
    assert command.main([*arguments, "--resume", "--seed", "1"]) == 2
    assert "settings.seed was 0, is 1" in capsys.readouterr().err
    assert command.main([*arguments, "--resume", "--T", "3"]) == 2
    assert "it has GRU inference, dense: T=2 B=1 I=5 H=5, which this run does not" in capsys.readouterr().err
    assert out.read_text() == before


def test_files_of_the_first_schema_are_still_read():
    old = results.load(report.ROOT / "benchmarks" / "results" / "2-cores-zen-4" / "cpu.json")
    assert old["schema"] == 1 and "missing" in old["wall"] and old["absent"] == {}
    case, row = next(results.timed(old, "torch.nn", "rnnkernels"))
    assert row["operations"] == 2 * row["rows"] * 4 * case.H * (case.I + case.H)
    assert results.times_faster(row, "rnnkernels", "torch.nn") == row["results"]["rnnkernels"]["speedup"]
    assert "| LSTM inference, dense |" in report.render(old)


@pytest.mark.parametrize(("content", "message"), [('{"a": 1}', "not a result file"), ("[]", "not a result")])
def test_what_is_no_result_file_is_refused(tmp_path, content, message):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(results.UnreadableResult, match=message):
        results.load(tmp_path / "file.json")


def test_a_file_of_a_later_version_is_refused(tmp_path, tiny_result):
    (tmp_path / "file.json").write_text(json.dumps(tiny_result | {"schema": results.SCHEMA + 1}))
    with pytest.raises(results.UnreadableResult, match="reads up to"):
        results.load(tmp_path / "file.json")


def test_a_grid_and_flags_exclude_each_other(capsys):
    assert command.main(["run", "--grid", "tiny", "--T", "3", *QUICK]) == 2
    assert "give one or the other" in capsys.readouterr().err


def test_the_flags_make_every_combination(tiny_result):
    options = command._parser().parse_args(
        ["run", "--T", "1,5", "--H", "8,16", "--modes", "inference,streaming", "--cells", "gru"]
    )
    cases = command._cases(options)
    assert {(case.mode, case.T, case.B, case.H) for case in cases} == {
        *(("inference", t, b, h) for t in (1, 5) for b in (1, 16) for h in (8, 16)),
        *(("streaming", 1, b, h) for b in (1, 16) for h in (8, 16)),
    }
    assert len(cases) == 12


def test_the_targets_grid_spans_what_the_targets_are_about():
    cases = list(GRIDS["targets"]())
    assert len(set(cases)) == len(cases)
    dense = [case for case in cases if case.variant == "dense" and case.mode != "streaming"]
    assert (
        ({1, 1000} <= {c.T for c in dense}) and {1, 128} <= {c.B for c in dense} and {32, 63, 650, 1024} <= {c.H for c in dense}
    )
    assert {"packed", "bidirectional", "2 layers", "projection", "bfloat16"} <= {case.variant for case in cases}
    # What is held against the same case dense, or in float32, needs it in the grid.
    assert all(dataclasses.replace(c, packed=False, dtype="float32") in cases for c in cases if c.packed or c.dtype != "float32")
