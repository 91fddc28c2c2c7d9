"""``python -m benchmarks study`` counts, learns and judges as it says, and the committed report is what its data render to."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

import rnnkernels
from benchmarks import __main__ as command
from benchmarks.study import ablations, arms, figures, footprint, learning, parts, report, series, speech, store, tasks, verdicts
from benchmarks.study.verdicts import Comparison

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, DATA = ROOT / "docs" / "lstm-or-gru.md", ROOT / "benchmarks" / "results" / "2-cores-zen-3" / "study"


# --- what is counted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_parameters_and_operations_are_what_the_formulas_say(cell):
    shape = {"cell": cell, "input_size": 7, "hidden_size": 12, "steps": 5, "batch": 3}
    module = torch.nn.RNNBase(cell.upper(), 7, 12)
    assert sum(parameter.numel() for parameter in module.parameters()) == arms.layer_parameters(cell, 7, 12)
    counted = footprint.counted_by_torch(**shape)
    forward, backward = arms.forward_flops(**shape), arms.backward_flops(**shape)
    assert counted["torch.nn"] == (forward, backward)
    # The equations also yield the gradient of the states before the first step.
    assert counted["rnnkernels"] == (forward, 2 * forward)


def test_what_is_kept_for_backward_is_seen():
    case = footprint.Case("gru", "training", T=20, B=8, I=16, H=16)
    for provider in arms.CLASSES:
        memory = footprint.memory(case, provider, seed=0)
        output = 20 * 8 * 16 * 4
        assert 2 * output < memory["activations"] < memory["peak"]


def test_equal_parameters_are_as_equal_as_whole_hidden_sizes_allow():
    lstm, gru, wide = arms.arms(64, lambda cell, size: arms.layer_parameters(cell, 64, size))
    assert (lstm.hidden_size, gru.hidden_size) == (64, 64)
    target = arms.layer_parameters("lstm", 64, 64)
    missed = {size: abs(arms.layer_parameters("gru", 64, size) - target) for size in range(1, 200)}
    assert wide.hidden_size == min(missed, key=missed.__getitem__)


# --- what is learned -----------------------------------------------------------------------------------------------------


def test_the_answer_of_the_adding_problem_is_the_sum_of_the_marked_numbers():
    x, target = tasks.adding(11).draw(50, torch.Generator().manual_seed(0))
    assert x.shape == (11, 50, 2)
    assert torch.equal(x[..., 1].sum(0), torch.full((50,), 2.0))
    for n in range(50):
        first, second = (x[t, n, 0] for t in x[:, n, 1].nonzero().flatten())
        assert target[0, n, 0] == first + second


def test_copy_memory_asks_for_the_symbols_at_its_beginning():
    task = tasks.copy_memory(lag=7)
    x, target = task.draw(6, torch.Generator().manual_seed(0))
    shown = x.argmax(-1)
    assert torch.equal(shown[: task.answers], target)
    assert len(x) == 2 * task.answers + 7
    assert (shown[task.answers :] >= task.outputs).all()  # nothing but blanks and the cue afterwards
    assert torch.equal((shown == task.outputs + 1).nonzero()[:, 0].unique(), torch.tensor([task.answers + 7]))


def test_delayed_parity_asks_for_the_marked_bits_only():
    x, target = tasks.delayed_parity(lag=9).draw(40, torch.Generator().manual_seed(0))
    bits, marks = (x[..., 0] > 0).long(), x[..., 1].long()
    assert torch.equal((bits * marks).sum(0) % 2, target[0])
    assert len(x) == 11 and marks.sum() == 2 * 40


@pytest.mark.parametrize("name", tasks.LAGGED)
def test_chance_is_what_a_model_without_input_gets(name):
    task = tasks.LAGGED[name](20)
    _, target = task.draw(20_000, torch.Generator().manual_seed(0))
    outputs = torch.ones(1, 20_000, 1) if name == "adding" else torch.eye(task.outputs)[0].expand(*target.shape, -1)
    assert task.accuracy(outputs, target).item() == pytest.approx(task.chance, abs=0.012)


def test_a_short_lag_is_learned_and_the_run_ends_there(native_library):
    run = learning.learn_lagged(tasks.delayed_parity(1), "gru", 32, 0, steps=2000, batch=32, learning_rate=1e-2, every=50)
    assert run["solved_at"] is not None and run["solved_at"] == run["curve"]["step"][-1] < 2000
    assert run["curve"]["accuracy"][-1] >= learning.SOLVED


def test_the_language_model_learns_and_is_judged_on_text_it_never_sees(native_library):
    text = tasks.text()
    assert len(text.held_out) * 9 == pytest.approx(len(text.train), rel=1e-3)
    run = learning.learn_language(text, "gru", 16, 0, steps=30, batch=8, length=16, embedding=8, learning_rate=1e-2, every=15)
    assert run["curve"]["step"] == [15, 30]
    uniform = torch.tensor(float(text.characters)).log().item()
    assert run["curve"]["held_out"][1] < run["curve"]["held_out"][0] < uniform


def test_a_linear_series_is_forecast_exactly_by_autoregression(monkeypatch):
    angle = torch.arange(400.0)
    monkeypatch.setattr(series, "load", lambda name: (0.3 * angle).sin() + (1.1 * angle).cos())
    assert series.autoregression("waves", 200) < 1e-3


def test_forecasters_are_not_trained_on_what_they_are_tested_on(monkeypatch, native_library):
    torch.manual_seed(0)
    waves = (0.3 * torch.arange(301.0)).sin() + 0.1 * torch.randn(301)
    spoiled = torch.cat((waves[: -series.TEST_POINTS], 100 * torch.randn(series.TEST_POINTS)))
    runs = []
    for values in (waves, spoiled):
        monkeypatch.setattr(series, "load", lambda name, values=values: values)
        runs.append(series.forecast("waves", 200, "gru", 8, seed=0, steps=20, learning_rate=1e-2))
    assert runs[0]["stopped_at"] == runs[1]["stopped_at"]
    assert runs[0]["error"] < 1 != runs[1]["error"]


# --- gates taken away ----------------------------------------------------------------------------------------------------


def gates_after_training(variant: ablations.Variant) -> torch.Tensor:
    """(T, N, gates, H) as the equations have them, after a few steps of a large learning rate."""
    rnn = variant.make(variant.cell, 3, 8)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.1)
    x = torch.randn(6, 4, 3)
    for _ in range(5):
        optimizer.zero_grad()
        rnn(x)[0].square().mean().backward()
        optimizer.step()
    weights = [getattr(rnn, name).detach() for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    zero = torch.zeros(1, 4, 8)
    if variant.cell == "lstm":
        return rnnkernels.ops.reference.lstm_forward(x, None, zero, zero, weights, True, False, False, True)[3][0]
    return rnnkernels.ops.reference.gru_forward(x, None, zero, weights, True, False, True)[2][0]


@pytest.mark.parametrize("variant", ablations.VARIANTS, ids=lambda variant: variant.name)
def test_gates_that_are_taken_away_stay_away(variant, native_library):
    gates = gates_after_training(variant)
    rows = dict(zip("ifgo" if variant.cell == "lstm" else "rzn", gates.unbind(2), strict=False))
    word = {"input": "i", "forget": "f", "output": "o", "reset": "r", "update": "z"}
    _, _, change = variant.name.partition(", ")
    gate, _, value = change.partition(" gate = ")
    if value == "1 - forget gate":
        torch.testing.assert_close(rows["i"], 1 - rows["f"])
    elif value:
        assert (rows.pop(word[gate]) == float(value)).all()
    for name, others in rows.items():
        assert others.std() > 0, f"{name} should have learned"


def test_a_bias_is_added_to_its_gate_only():
    torch.manual_seed(0)
    plain = ablations.VARIANTS[0].make("lstm", 3, 4)
    torch.manual_seed(0)
    biased = ablations.VARIANTS[1].make("lstm", 3, 4)
    difference = biased.bias_ih_l0 - plain.bias_ih_l0
    torch.testing.assert_close(difference, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(4))


# --- verdicts ------------------------------------------------------------------------------------------------------------


def test_the_permutation_test_counts_the_ways_to_deal():
    assert verdicts.permutation_p([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(2 / 70)
    assert verdicts.permutation_p([5, 6, 7, 8], [1, 2, 3, 4]) == pytest.approx(2 / 70)
    assert verdicts.permutation_p([1, 1, 1, 1], [1, 1, 1, 1]) == 1
    brute = [abs(sum(group) / 2 - (10 - sum(group)) / 3) for group in itertools.combinations([0, 1, 2, 3, 4], 2)]
    assert verdicts.permutation_p([0, 1], [2, 3, 4]) == sum(value >= 2.5 for value in brute) / 10


@pytest.mark.parametrize(
    ("less", "more", "outcome"),
    [([1, 2, 3, 4], [5, 6, 7, 8], "yes"), ([5, 6, 7, 8], [1, 2, 3, 4], "no"), ([1, 2, 3, 9], [5, 6, 7, 8], "even")],
)
def test_seeds_decide_only_when_they_are_apart(less, more, outcome):
    assert verdicts.of_samples({}, less, more).outcome == outcome


@pytest.mark.parametrize(
    ("p20", "median", "p80", "outcome"),
    [(1.1, 1.2, 1.3, "yes"), (0.7, 0.8, 0.9, "no"), (0.9, 1.2, 1.3, "even"), (1.001, 1.01, 1.02, "even")],
)
def test_times_decide_only_beyond_their_spread(p20, median, p80, outcome):
    timing = {"speedup_p20": p20, "speedup": median, "speedup_p80": p80}
    assert verdicts.of_times({}, timing).outcome == outcome


@pytest.mark.parametrize(("less", "outcome"), [(75, "yes"), (99, "even"), (101, "even"), (110, "no")])
def test_counts_within_two_percent_are_equal(less, outcome):
    assert verdicts.of_counts({}, less, 100).outcome == outcome


def comparisons(**outcomes: str) -> list[Comparison]:
    """One for each library and size, the outcomes by library as letters: yes, no, even."""
    words = {"y": "yes", "n": "no", "e": "even"}
    return [
        Comparison({"library": library, "size": str(size)}, words[letter], 1.0)
        for library, letters in outcomes.items()
        for size, letter in enumerate(letters)
    ]


@pytest.mark.parametrize(
    ("outcomes", "kind", "words"),
    [
        ({"a": "yy", "b": "yy"}, "holds", ""),
        ({"a": "nn", "b": "nn"}, "does not hold", "the opposite does"),
        ({"a": "ee", "b": "ee"}, "does not hold", "no difference beyond the spread"),
        ({"a": "ne", "b": "ee"}, "does not hold", "the opposite in 1, no difference in 3 of 4"),
        ({"a": "yy", "b": "ne"}, "depends", "mostly on the library (a: as claimed; b: the opposite in 1, no difference in 1)"),
        ({"a": "yy", "b": "nn"}, "depends", "on the library (a: as claimed; b: the opposite)"),
        ({"a": "ye", "b": "ye"}, "depends", "on the size (0: as claimed; 1: no difference)"),
    ],
)
def test_a_verdict_follows_from_its_comparisons(outcomes, kind, words):
    assert verdicts.judge(comparisons(**outcomes)) == verdicts.Verdict(kind, words)


def test_two_settings_explain_together_what_neither_explains_alone():
    both = [dataclasses.replace(c, setting=c.setting | {"seed": seed}) for seed in "01" for c in comparisons(a="yn", b="nn")]
    assert (
        verdicts.judge(both).words
        == "on the library and the size (a with 0: as claimed; a with 1, b with 0, b with 1: the opposite)"
    )


# --- result files --------------------------------------------------------------------------------------------------------


def test_a_part_stops_at_the_deadline_and_goes_on_where_it_stopped(tmp_path):
    called = []
    units = {name: (lambda name=name: called.append(name) or name.upper()) for name in "abc"}
    part = store.Part("some part", units, {"steps": 3}, {}, threads=1)
    assert not store.complete(part, tmp_path, deadline=0.0)
    first = dataclasses.replace(part, units={"a": units["a"]})
    assert store.complete(first, tmp_path) and called == ["a"]
    assert store.complete(part, tmp_path) and called == ["a", "b", "c"]
    assert store.complete(part, tmp_path) and called == ["a", "b", "c"]
    assert store.read(tmp_path, "some part")["units"] == {"a": "A", "b": "B", "c": "C"}


def test_a_file_of_other_settings_is_not_continued(tmp_path):
    part = store.Part("part", {"a": lambda: 1}, {"steps": 3}, {}, threads=1)
    store.complete(part, tmp_path)
    with pytest.raises(store.Stale, match="other settings"):
        store.complete(dataclasses.replace(part, settings={"steps": 4}), tmp_path)


def test_a_part_that_is_not_finished_says_so(tmp_path):
    part = store.Part("part", {"a": lambda: 1, "b": lambda: 2}, {}, {}, threads=1)
    assert store.read_or_missing(part, tmp_path)["objection"] == "2 of 2 units are yet to be measured"
    store.complete(dataclasses.replace(part, units={"a": part.units["a"]}), tmp_path)
    assert store.read_or_missing(part, tmp_path)["objection"] == "1 of 2 units are yet to be measured"
    store.complete(part, tmp_path)
    assert "objection" not in store.read_or_missing(part, tmp_path)


# --- the report ----------------------------------------------------------------------------------------------------------

TINY = dataclasses.replace(
    parts.SCALES["quick"],
    seconds=0.0,
    hidden_sizes=(8,),
    stream_sizes=(8,),
    language_hidden=8,
    language_steps=2,
    most_steps=2,
    series_points=(20,),
    series_steps=2,
    ablation_steps=2,
)


def test_the_whole_study_runs_small_and_says_what_it_could_not_measure(tmp_path, monkeypatch, threads, capsys, native_library):
    threads(1)
    monkeypatch.setitem(parts.SCALES, "quick", TINY)
    monkeypatch.setattr(parts, "AGREEMENT_STEPS", 2)
    text = tasks.text()
    short = dataclasses.replace(text, train=text.train[:4000], held_out=text.held_out[:4000])
    monkeypatch.setattr(tasks, "text", lambda: short)
    monkeypatch.setattr(speech, "missing", lambda: "nobody speaks here")
    pytest.importorskip("statsmodels", reason="the series are statsmodels'")
    assert command.main(["study", "--quick", "--out", str(tmp_path)]) == 0
    document = (tmp_path / "report.md").read_text()
    assert document.count("| **") >= 16
    assert "**not measured**: speech: nobody speaks here" in document
    results = {part.name: store.read_or_missing(part, tmp_path) for part in parts.parts(TINY)}
    for figure in figures.figures(results):
        assert figures.drawn_digest(report.plot_path(tmp_path / "report.md", figure)) == figure.digest()
    next(iter(results["language"]["units"].values()))["curve"]["held_out"][-1] += 0.1
    assert report.render(results, tmp_path / "report.md", tmp_path) != document
    # Measured again, nothing is.
    capsys.readouterr()
    assert command.main(["study", "--quick", "--out", str(tmp_path)]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["speech", "report"]


def committed() -> dict[str, dict]:
    return {part.name: store.read_or_missing(part, DATA) for part in parts.parts(parts.SCALES["full"])}


def test_the_committed_report_is_what_its_data_render_to():
    assert DOCUMENT.read_text(encoding="utf-8") == report.render(committed(), DOCUMENT, DATA), "python -m benchmarks study --help"


def test_the_committed_plots_are_drawn_from_the_committed_data():
    for figure in figures.figures(committed()):
        assert figures.drawn_digest(report.plot_path(DOCUMENT, figure)) == figure.digest(), figure.name


def test_the_committed_study_was_measured_as_this_version_would():
    for part in parts.parts(parts.SCALES["full"]):
        if (result := store.read(DATA, part.name)) is not None:
            assert result["settings"] == json.loads(json.dumps(part.settings))
            assert list(result["units"]) == [name for name in part.units if name in result["units"]]
    assert {path.stem for path in DATA.iterdir()} <= {
        store.path(DATA, part.name).stem for part in parts.parts(parts.SCALES["full"])
    }
