"""The examples run, small, and notice when something is wrong."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import char_language_model as demo

SMALL = ["--steps", "4", "--hidden-size", "16", "--batch-size", "3", "--length", "8"]


def test_the_demo_trains_both_cells_compares_samples_and_plots(tmp_path, capsys):
    plot = tmp_path / "plots" / "curves.png"
    assert demo.main([*SMALL, "--out", str(plot)]) == 0
    printed = capsys.readouterr().out
    for cell in ("LSTM", "GRU"):
        assert f"{cell}: loss " in printed
    assert printed.count("rnnkernels writes: The") == 2
    assert printed.count(": within") == 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_demo_fails_when_the_curves_differ_by_more_than_rounding(tmp_path, monkeypatch, capsys):
    def replace_and_spoil(model):
        with torch.no_grad():
            model.rnn.weight_hh_l0.mul_(1.01)

    monkeypatch.setattr(demo.rnnkernels, "replace_rnn_modules", replace_and_spoil)
    assert demo.main([*SMALL, "--out", str(tmp_path / "curves.png")]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_every_run_of_the_demo_starts_from_the_same_weights(cell):
    runs = demo.make_runs(getattr(torch.nn, cell), characters=10, hidden_size=6)
    initial = runs["torch.nn"].model.state_dict()
    for run in runs.values():
        assert all(torch.equal(value, initial[name]) for name, value in run.model.state_dict().items())
    assert type(runs["rnnkernels"].model.rnn) is getattr(demo.rnnkernels, cell)


def test_targets_are_the_characters_that_follow():
    text = torch.arange(40)
    for _, (characters, successors) in zip(range(9), demo.batches(text, length=4, batch_size=2), strict=False):
        assert torch.equal(successors, characters + 1)


def test_the_same_seed_samples_the_same_text():
    _, characters = demo.load_text()
    torch.manual_seed(0)
    model = demo.CharModel(torch.nn.GRU, len(characters), 8)
    assert demo.sample(model, characters, "The ", 20) == demo.sample(model, characters, "The ", 20)
