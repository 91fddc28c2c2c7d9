"""The choice of backend: by name, by the environment, per thread; refusals with their reason; backward where forward ran."""

from __future__ import annotations

import threading

import pytest
import torch
from cases import Case, draw, ours
from marks import every_backend
from subprocesses import python

from rnnkernels import Request, UnsupportedRequest, backends, choose, explain, functional, use_backend

CPU = torch.device("cpu")
FAMILY = {"reference": "reference_", "cpu": "", "triton": "triton_"}


def request(**changes) -> Request:
    return Request(cell="lstm", device=CPU, dtype=torch.float32, input_size=5, hidden_size=7)._replace(**changes)


def run_operators(function) -> set[str]:
    """Names of rnnkernels' operators that run while ``function`` does."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {e.key for e in profile.key_averages() if e.key.startswith("rnnkernels::")}


@pytest.mark.parametrize("name", backends.PREFERENCE)
def test_use_backend_picks_by_name_and_restores(name: str) -> None:
    asked = request()
    before = backends.selected()
    if backends.get(name).unsupported(asked):
        pytest.skip(f"not available: {backends.get(name).unsupported(asked)}")
    with use_backend(name):
        assert choose(asked).name == name
        with use_backend("reference"):
            assert choose(asked).name == "reference"
        assert choose(asked).name == name
    assert backends.selected() == before


def test_the_choice_is_restored_after_an_exception() -> None:
    before = backends.selected()
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backends.selected() == before


def test_auto_prefers_native_code(native_library: None) -> None:
    assert choose(request()).name == "cpu"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with (
        pytest.raises(ValueError, match="unknown backend 'cudnn'; known are auto, cpu, cuda, aten, reference, triton"),
        use_backend("cudnn"),
    ):
        pass


def test_a_backend_asked_for_by_name_that_cannot_serve_raises_with_its_reason() -> None:
    with use_backend("aten"), pytest.raises(UnsupportedRequest, match=r"'aten' was asked for .* torch.func transforms"):
        choose(request(transformed=True))
    with use_backend("cpu"), pytest.raises(UnsupportedRequest, match="reference equations"):
        choose(request(forward_ad=True))
    with use_backend("cpu"), pytest.raises(UnsupportedRequest, match="tensors are on cuda"):
        choose(request(device=torch.device("cuda", 0)))


def test_a_dtype_nobody_computes_in_is_refused_with_everybodys_reason() -> None:
    with pytest.raises(UnsupportedRequest, match=r"cpu: .*aten: .*reference: .*triton: torch\.complex64 is not one of float32"):
        choose(request(dtype=torch.complex64))


def test_forward_mode_with_the_native_backend_by_name_raises(native_library: None) -> None:
    problem = draw(Case("gru"))
    with use_backend("cpu"), pytest.raises(UnsupportedRequest, match="forward-mode"):
        torch.func.jvp(lambda x: functional.gru(x, None, list(problem.weights.values()))[0], (problem.input,), (problem.input,))


@every_backend
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_functions_run_the_operators_of_the_chosen_backend(backend: str, cell: str) -> None:
    problem = draw(Case(cell))
    names = run_operators(lambda: ours(problem.case, problem.input, problem.states, problem.weights))
    prefix = FAMILY[backend]
    assert names == {f"rnnkernels::{prefix}{cell}_forward"}


@pytest.mark.parametrize(("inside", "outside"), [("reference", "cpu"), ("cpu", "reference"), ("cpu", "aten"), ("triton", "cpu")])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_backward_runs_on_the_backend_that_ran_forward(
    native_library: None, request: pytest.FixtureRequest, cell: str, inside: str, outside: str
) -> None:
    if inside == "triton":
        request.getfixturevalue("interpreter")
    problem = draw(Case(cell))
    weights = {n: w.requires_grad_() for n, w in problem.weights.items()}
    with use_backend(inside):
        output, *_ = ours(problem.case, problem.input, problem.states, weights)
    prefix = FAMILY[inside]
    with use_backend(outside):
        names = run_operators(lambda: output.sum().backward())
    assert names == {f"rnnkernels::{prefix}{cell}_backward"}


def test_a_choice_in_one_thread_is_unknown_to_the_others() -> None:
    seen: dict[str, str] = {}
    chosen, done = threading.Event(), threading.Event()

    def chooser() -> None:
        with use_backend("reference"):
            chosen.set()
            done.wait(10)
            seen["chooser"] = backends.selected()

    thread = threading.Thread(target=chooser)
    thread.start()
    assert chosen.wait(10)
    seen["main"] = backends.selected()
    done.set()
    thread.join()
    assert seen == {"main": "auto", "chooser": "reference"}


def test_the_environment_variable_sets_the_default() -> None:
    code = (
        "import threading, rnnkernels, rnnkernels.backends as b\n"
        "print(b.selected())\n"
        "t = threading.Thread(target=lambda: print(b.selected())); t.start(); t.join()\n"
        "with rnnkernels.use_backend('auto'): print(b.selected())\n"
    )
    result = python(code, RNNKERNELS_BACKEND="reference")
    assert result.stdout.split() == ["reference", "reference", "auto"], result.stderr


def test_a_misspelt_environment_variable_fails_at_import_and_says_so() -> None:
    result = python("import rnnkernels", RNNKERNELS_BACKEND="gpu")
    assert result.returncode != 0
    assert "unknown backend 'gpu' in the environment variable RNNKERNELS_BACKEND" in result.stderr


def test_explain_names_the_choice_and_every_objection() -> None:
    explanation = explain(request(forward_ad=True, bidirectional=True, num_layers=2, proj_size=3, packed=True))
    assert explanation.chosen == "reference"
    assert set(explanation.objections) == set(backends.PREFERENCE)
    assert explanation.objections["reference"] is None
    text = str(explanation)
    assert "LSTM input 5, hidden 7, projection 3, 2 layers, both directions, packed, float32 on cpu" in text
    assert "-> reference" in text
    for objection in explanation.objections.values():
        assert (objection or "can serve") in text


def test_explain_never_raises_for_what_nobody_can_do() -> None:
    explanation = explain(request(dtype=torch.int32))
    assert explanation.chosen is None
    assert "chosen: none" in str(explanation)
    with use_backend("aten"):
        assert explain(request(transformed=True)).chosen is None


def test_explain_refuses_what_is_no_module_of_ours() -> None:
    with pytest.raises(TypeError, match="Request or a module of rnnkernels, got Linear"):
        explain(torch.nn.Linear(1, 1))
