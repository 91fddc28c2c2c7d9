"""``python -m rnnkernels.info`` tells the truth about this installation."""

import json
import os
import subprocess
import sys

import pytest
import torch

from rnnkernels import _library, backends, info

KEYS = {
    "versions": {"rnnkernels", "python", "torch", "cuda", "triton", "numpy"},
    "machine": {
        "system",
        "architecture",
        "cpu",
        "physical_cores",
        "logical_cores",
        "isa",
        "torch_isa",
        "torch_threads",
        "gpus",
    },
    "native": {
        "available",
        "reason",
        "path",
        "compiler",
        "flags",
        "built_with_torch",
        "isas_built",
        "isas_supported",
        "isa",
        "isa_error",
    },
    "backends": set(backends.PREFERENCE),
    "environment": set(info.ENVIRONMENT),
}


def _run(*arguments, **environment):
    command = [sys.executable, "-m", "rnnkernels.info", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})


def test_json_from_the_command_line_has_the_documented_keys():
    result = json.loads(_run("--json").stdout)
    assert result.pop("schema") == info.SCHEMA
    assert set(result) == set(KEYS)
    for section, keys in KEYS.items():
        assert keys <= set(result[section]), section


def test_every_backend_is_either_available_or_says_why_not():
    for name, backend in info.collect()["backends"].items():
        request = backends.Request(cell="lstm", device=torch.device("cpu"), dtype=torch.float32, input_size=64, hidden_size=64)
        assert backend["available"] == (backends.get(name).unsupported(request) is None)
        assert backend["available"] == (backend["reason"] is None)


def test_native_section_agrees_with_the_library_loader():
    native, status = info.collect()["native"], _library.status()
    assert (native["available"], native["reason"]) == (status.available, status.reason)


def test_native_section_is_whole_without_the_extension_module(monkeypatch):
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None)
    native = info.collect()["native"]
    assert KEYS["native"] <= set(native)
    assert (native["isas_supported"], native["isa"]) == ([], None)


@pytest.mark.parametrize("available", [True, False])
def test_text_form_names_every_backend_and_the_state_of_the_library(monkeypatch, available):
    reason = None if available else "the compiler was missing"
    monkeypatch.setattr(_library, "status", lambda: _library.Status(available, reason, _library.PATH))
    text = info.render(info.collect())
    for name in backends.PREFERENCE:
        assert f"\n  {name} " in text
    assert ("  loaded" if available else "  not loaded: the compiler was missing") in text


def test_environment_variables_in_force_are_shown():
    text = _run(RNNKERNELS_BACKEND="aten").stdout
    assert [line.split() for line in text.splitlines() if "RNNKERNELS_BACKEND" in line] == [["RNNKERNELS_BACKEND", "aten"]]


def test_gpus_are_listed_by_name(monkeypatch):
    properties = type("Properties", (), {"name": "Imaginary GPU", "major": 9, "minor": 0, "total_memory": 2**33})()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert "GPU 0        Imaginary GPU, compute capability 9.0, 8 GiB" in info.render(info.collect())
