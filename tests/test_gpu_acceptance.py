"""The GPU acceptance works but for the GPU: its dry run, what happens when a run is cut or breaks, and what it reports."""

import functools
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the acceptance is of Triton kernels")

from benchmarks.gpu_acceptance import (
    conductor,
    report,
    speed,
)
from benchmarks.gpu_acceptance.stage import FAULT, Stage, read_json
from rnnkernels.backends.triton import tuning as tilings_on_disk
from rnnkernels.backends.triton.plan import Tiling

ROOT = Path(__file__).resolve().parent.parent
STAGES = list(conductor.SHARES)


def acceptance(*arguments, timeout=300):
    command = [sys.executable, "-m", "benchmarks.gpu_acceptance", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """A directory with a whole dry run, and what was printed."""
    directory = tmp_path_factory.mktemp("acceptance") / "run"
    done = acceptance("--out", directory, "--device", "cpu-interpreter")
    assert done.returncode == 0, done.stdout + done.stderr + "".join(log.read_text() for log in directory.glob("*.log"))
    return directory, done.stdout


@pytest.fixture
def stage(tmp_path):
    """A stage of a dry run with time on its hands."""
    return functools.partial(Stage, directory=tmp_path, device="cpu-interpreter", deadline=time.monotonic() + 600)


def rows_of(dry_run, name):
    return json.loads((dry_run[0] / f"{name}.json").read_text())["rows"]


# --- the dry run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_ends_with_a_file_that_says_on_what_and_how_it_ended(dry_run, name):
    content = json.loads((dry_run[0] / f"{name}.json").read_text())
    assert (content["status"], content["reason"], content["skipped"]) == ("complete", None, [])
    assert set(content["conditions"]) == {"machine", "date", "commit", "torch", "triton", "cuda", "cudnn", "dry_run"}
    keys = [row["key"] for row in content["rows"]]
    assert len(keys) == len(set(keys)) > 0
    assert not [row for row in content["rows"] if "error" in row]


def test_no_name_of_a_host_and_no_path_gets_into_the_files(dry_run):
    for file in dry_run[0].iterdir():
        text = file.read_text()
        # As a word: a short name is part of many others.
        assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
        assert str(ROOT) not in text


def test_every_schedule_is_compared_with_the_oracle_for_both_cells(dry_run):
    judged = [row for row in rows_of(dry_run, "parity") if "within_budget" in row]
    assert all(row["within_budget"] and 0 <= row["share"] <= 1 for row in judged)
    assert {(row["case"]["cell"], row["schedule"]) for row in judged} == {
        (cell, schedule) for cell in ("lstm", "gru") for schedule in ("program", "grid", "stepwise")
    }
    assert {"packed", "bidirectional"} <= {name for row in judged for name, value in row["case"].items() if value is True}
    for row in judged:
        kernels = {launch["kernel"] for launch in row["launches"]}
        step = "step_" if row["schedule"] == "stepwise" else ""
        assert kernels == {f"{step}forward_kernel", f"{step}backward_kernel"}


def test_results_are_compared_bit_by_bit(dry_run):
    again = [row for row in rows_of(dry_run, "repeatability") if row.get("kind") == "again"]
    assert {row["schedule"] for row in again} == {"program", "grid", "stepwise"}
    assert all(row["bitwise"] for row in again)


def test_every_schedule_and_the_plan_are_timed_next_to_torch(dry_run):
    for row in rows_of(dry_run, "speed"):
        assert set(row["results"]) == {"torch.nn", "program", "grid", "stepwise", "plan"}
        for entry in row["results"].values():
            assert 0 < entry["wall"]["p20_s"] <= entry["wall"]["median_s"] <= entry["wall"]["p80_s"]
            assert entry["difference"] <= speed.LIMIT
        assert row["results"]["torch.nn"]["wall"]["speedup"] == 1


def test_the_table_of_winners_is_what_the_package_reads(dry_run, tmp_path):
    table = json.loads((dry_run[0] / "tuning.json").read_text())["facts"]["table"]
    file = tmp_path / "table.json"
    file.write_text(json.dumps(table))
    read = tilings_on_disk.read(file)
    assert set(read) == set(table)
    assert all(isinstance(tiling, Tiling) for tiling in read.values())


def test_mechanisms_have_costs_and_what_was_exchanged_arrived(dry_run):
    rows = rows_of(dry_run, "mechanisms")
    assert all({"median", "p20", "p80"} <= set(row) or "unsupported" in row for row in rows)
    assert [row["sums_are_right"] for row in rows if "sums_are_right" in row] == [True]


def test_peers_and_tools_that_are_not_there_are_named_with_a_reason(dry_run):
    for row in (*rows_of(dry_run, "peers"), *rows_of(dry_run, "profiles")):
        assert "not installed" in row["unsupported"]


def test_the_summary_is_printed_last_and_the_report_command_renders_the_files(dry_run):
    directory, printed = dry_run
    assert printed.endswith((directory / "summary.md").read_text() + "\n")
    done = acceptance("report", directory)
    assert done.stdout == (directory / "report.md").read_text()
    assert all(f"## {name.capitalize()}" in done.stdout for name in STAGES)


def test_an_unknown_stage_is_refused_by_name(tmp_path):
    done = acceptance("--out", tmp_path, "--stages", "speed,spede")
    assert done.returncode == 2
    assert "unknown stages spede" in done.stderr


# --- a run that is cut, or breaks ----------------------------------------------------------------------------------------


def test_a_stage_out_of_time_keeps_what_it_has_and_names_what_it_left_out(stage):
    cut = stage("parity")

    def measure(stage):
        stage.row("first", lambda: {"value": 1})
        stage.deadline = 0
        stage.row("second", lambda: {"value": 2})

    cut.run(measure)
    content = read_json(cut.path)
    assert (content["status"], content["skipped"]) == ("cut", ["second"])
    assert [row["key"] for row in content["rows"]] == ["first"]
    assert "cut" in report.render(cut.directory)


def test_rows_are_in_the_file_as_soon_as_they_are_measured(stage):
    running = stage("parity")
    running.row("first", lambda: {"value": 1})

    def second():
        content = read_json(running.path)
        assert [row["key"] for row in content["rows"]] == ["first"]
        assert content["running"]["key"] == "second"
        return {}

    assert "error" not in running.row("second", second)


def test_an_exception_is_a_row_and_the_next_row_is_measured(stage):
    running = stage("parity")
    row = running.row("bad", functools.partial(int, "x"))
    assert "ValueError: invalid literal" in row["error"]
    assert running.row("good", lambda: {"value": 1})["value"] == 1


def test_a_stage_that_fails_says_where(stage):
    failing = stage("parity")
    failing.run(lambda stage: stage.no_such_thing)
    content = read_json(failing.path)
    assert content["status"] == "failed"
    assert "no_such_thing" in content["reason"]


def test_a_schedule_that_faulted_twice_is_left_out_in_later_stages(stage):
    parity = stage("parity")
    for key in ("a", "b"):
        parity._add({"key": key, "schedule": "grid", "error": "trap", "fault": "trap"})
    later = stage("speed")
    assert later.blocked() == {"grid"}
    assert "left out" in later.row("c", dict, schedule="grid")["unsupported"]
    assert "unsupported" not in later.row("d", dict, schedule="program")


#: Stands in for a stage's process: each of its first rows ends a process in another way.
_FRAGILE = """
import json, os, sys, time
from pathlib import Path
from benchmarks.gpu_acceptance.stage import Stage

def fault():
    stage.fault = lambda: "an illegal memory access"
    return {}

def run(stage):
    if stage.name == "speed":
        raise RuntimeError("it cannot be measured")
    stage.row("fine", dict)
    if stage.name != "parity":
        return
    stage.row("fault", fault, "grid")
    stage.row("death", lambda: os._exit(9))
    stage.row("hang", lambda: time.sleep(60))
    stage.row("fine again", dict)

deadline = json.loads(sys.stdin.readline())["deadline"]
stage = Stage(sys.argv[1], Path(sys.argv[2]), "cpu-interpreter", deadline)
stage.run(run)
"""


def test_faults_deaths_and_hangs_are_recorded_and_the_run_goes_on_behind_them(tmp_path, monkeypatch, capsys):
    def command(plan, name):
        return [sys.executable, "-c", _FRAGILE, name, str(plan.directory)]

    monkeypatch.setattr(conductor, "command", command)
    plan = conductor.Plan(tmp_path, "cpu-interpreter", ["parity", "speed", "tuning"], minutes=5, row_limit=5)
    assert not conductor.conduct(plan)
    content = read_json(tmp_path / "parity.json")
    rows = {row["key"]: row for row in content["rows"]}
    assert list(rows) == ["fine", "fault", "death", "hang", "fine again"]
    assert (content["status"], rows["fault"]["schedule"]) == ("complete", "grid")
    assert rows["fault"]["error"] == "an illegal memory access"
    assert "ended with 9" in rows["death"]["error"]
    assert "nothing was finished in 5 s" in rows["hang"]["error"]
    assert read_json(tmp_path / "tuning.json")["status"] == "complete"
    failed = read_json(tmp_path / "speed.json")
    assert failed["status"] == "failed"
    assert "it cannot be measured" in failed["reason"]
    assert "failed" in capsys.readouterr().out
    text = report.render(tmp_path)
    assert "an illegal memory access" in text and "it cannot be measured" in text


def test_a_stage_whose_process_cannot_start_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(conductor, "command", lambda plan, name: [sys.executable, "-c", "raise ImportError('no such module')"])
    assert not conductor.conduct(conductor.Plan(tmp_path, "cpu-interpreter", ["parity"], minutes=1))
    assert "no such module" in read_json(tmp_path / "parity.json")["reason"]


def test_a_run_that_is_ended_from_outside_ends_its_children_and_reports_what_it_has(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_acceptance", "--out", str(tmp_path), "--device", "cpu-interpreter"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "parity.json").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.terminate()
    output, _ = run.communicate(timeout=60)
    assert "GPU acceptance on" in output
    assert run.returncode == 143
    content = read_json(tmp_path / "parity.json")
    assert (content["status"], content["reason"]) == ("cut", "the run was ended from outside")
    time.sleep(1)
    assert read_json(tmp_path / "parity.json") == content


def test_kernels_are_compiled_beside_the_stages_until_they_end(tmp_path, monkeypatch):
    started = []

    def command(plan, name):
        started.append(name)
        code = _FRAGILE.replace('"speed"', '"no stage"').replace('"parity"', '"no stage either"')
        return [sys.executable, "-c", code if name != "compiling" else "import time; time.sleep(100)", name, str(plan.directory)]

    monkeypatch.setattr(conductor, "command", command)
    assert conductor.conduct(conductor.Plan(tmp_path, "cuda", ["machine", "parity"], minutes=1))
    assert started == ["machine", "parity", "compiling"]


def test_fault_is_no_exit_status_python_uses():
    assert FAULT not in (0, 1, 2, 120)
