"""The examples run, small, and notice when something is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence

import rnnkernels

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import char_language_model as demo
import export_model
import forecast_stream
import speech_commands
import swap_modules
import transliterate

EXAMPLES = Path(demo.__file__).parent
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


# --- spoken commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def espeak():
    if (reason := speech_commands.missing()) is not None:
        pytest.skip(reason)


def test_spoken_commands_are_learned_from_voices_and_recognised_from_others(espeak, capsys):
    options = ["--accents", "en-us", "--speeds", "160", "--hidden-size", "24", "--steps", "40", "--noise", "0.1"]
    assert speech_commands.main(options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("50 utterances of ")
    recognised = float(re.search(r"([\d.]+)% of the voices", printed)[1])
    assert recognised > 30  # by chance 10


def test_without_espeak_the_speech_example_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(speech_commands.shutil, "which", lambda name: None)
    assert speech_commands.main([]) == 2
    assert "apt-get install espeak-ng" in capsys.readouterr().err


def test_a_tone_is_loudest_in_the_mel_band_around_it():
    time = torch.arange(speech_commands.RATE) / speech_commands.RATE
    bands = speech_commands.mel_bands()
    for frequency in (300.0, 1000.0, 4000.0):
        spectrum = torch.stft(
            (2 * torch.pi * frequency * time).sin(), speech_commands.WINDOW, window=torch.hann_window(512), return_complex=True
        )
        loudest = (spectrum.abs().square().T @ bands).mean(0).argmax()
        peak = bands[:, loudest].argmax() * speech_commands.RATE / speech_commands.WINDOW
        assert abs(peak - frequency) < 0.15 * frequency


def test_a_batch_of_utterances_is_packed_without_padding():
    lengths = (9, 4, 12)
    utterances = [speech_commands.Utterance(torch.randn(n, speech_commands.MELS), word) for word, n in enumerate(lengths)]
    packed, words = speech_commands.collate(utterances)
    assert len(packed.data) == sum(lengths)
    assert pad_packed_sequence(packed)[1].tolist() == list(lengths)
    assert words.tolist() == [0, 1, 2]


# --- forecasts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_forecasts_are_streamed_as_they_are_computed_at_once_and_are_timed(cell, threads, capsys):
    threads(1)
    if (reason := forecast_stream.missing()) is not None:
        pytest.skip(reason)
    assert forecast_stream.main(["--cell", cell, "--steps", "12", "--hidden-size", "16", "--test-weeks", "120"]) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"differ by at most ([\d.e+-]+)", printed)[1]) < 1e-5
    p50, p99 = (float(figure) for figure in re.search(r"p50 ([\d.]+) µs, p99 ([\d.]+) µs", printed).groups())
    assert 0 < p50 <= p99
    ours, persistence = (float(figure) for figure in re.findall(r"([\d.]+) ppm", printed))
    assert ours < 1.1 * persistence


# --- transliteration -----------------------------------------------------------------------------------------------------


def test_the_hybrid_with_attention_learns_to_write_syllables_it_has_not_seen(capsys):
    assert transliterate.main(["--steps", "60", "--hidden-size", "48", "--training-words", "9000", "--batch-size", "48"]) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"([\d.]+)% of the other 2172 written right", printed)[1]) > 20


def test_every_syllable_is_spelled_by_two_or_three_letters():
    pairs = transliterate.syllables()
    assert ("GABS", "\u1100\u1161\u11b9") in pairs
    assert len({word for word, _ in pairs}) == len(pairs) == 11172
    assert {len(letters) for _, letters in pairs} == {2, 3}


def test_attention_does_not_look_at_padding():
    torch.manual_seed(0)
    model = transliterate.Transliterator(20, 30, 16)
    _, looks = transliterate.write(model, [torch.tensor([1, 2]), torch.tensor([3, 4, 5, 6])])
    assert (looks[:, 0, 2:] == 0).all()
    torch.testing.assert_close(looks.sum(-1), torch.ones(4, 2))


# --- swapping, exporting, several processes ------------------------------------------------------------------------------


def test_swapping_modules_in_one_line_changes_no_result(capsys):
    assert swap_modules.main(["--steps", "2", "--hidden-size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "replaced 2 of 2 recurrent modules" in printed
    difference, scale = (float(figure) for figure in re.search(r"logit: ([\d.e+-]+) of ([\d.]+)", printed).groups())
    assert difference <= 1e-5 * max(scale, 0.1)
    assert printed.splitlines()[-1] == "and back: torch.nn.modules.rnn.LSTM"


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.export's own
def test_an_exported_model_runs_from_its_file_alone(tmp_path, capsys):
    file = tmp_path / "model.pt2"
    assert export_model.main(["--steps", "2", "--hidden-size", "8", "--out", str(file)]) == 0
    assert "rnnkernels.lstm_forward.default" in capsys.readouterr().out
    assert export_model.main(["--load", str(file)]) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) == len("The ") + 60


def test_two_processes_of_torchrun_end_with_the_same_weights():
    small = ["--steps", "3", "--hidden-size", "8", "--batch-size", "4", "--length", "8", "--cell", "gru"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", EXAMPLES / "train_ddp.py"]
    path = os.pathsep.join(filter(None, (str(Path(rnnkernels.__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    result = subprocess.run([*command, *small], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "step 3: loss " in result.stdout
    assert "all processes have the same weights: yes" in result.stdout


def test_every_example_has_a_test_and_says_how_to_run_it():
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert example.stem in tests, example.name
        documentation = example.read_text(encoding="utf-8").split('"""')[1]
        assert f"examples/{example.name}" in documentation, example.name
