"""Fixtures and options shared by all tests: backends, seeds, threads, and how hard hypothesis searches."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Where no GPU is, Triton's kernels are interpreted; the choice must stand before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from rnnkernels import streaming
from rnnkernels.backends import NAMES, native, triton, use_backend

DEFAULT_BACKENDS = ("reference", "cpu")

# Examples per property: few by default so that the suite stays short, RNNKERNELS_TEST_EXAMPLES=1000 for a long search.
hypothesis.settings.register_profile(
    "rnnkernels",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("RNNKERNELS_TEST_EXAMPLES", "25")),
    # Examples only call functions: none depends on a fixture being fresh.
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("rnnkernels")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-native",
        action="store_true",
        default=os.environ.get("RNNKERNELS_TEST_REQUIRE_NATIVE", "0") == "1",
        help="fail, instead of skipping, tests of the native backend when it is not built although a compiler is there "
        "(also RNNKERNELS_TEST_REQUIRE_NATIVE=1)",
    )
    parser.addoption(
        "--require-triton",
        action="store_true",
        default=os.environ.get("RNNKERNELS_TEST_REQUIRE_TRITON", "0") == "1",
        help="fail, instead of skipping, tests of the Triton backend when Triton is not installed "
        "(also RNNKERNELS_TEST_REQUIRE_TRITON=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # One thread unless a test asks for more: the tensors are tiny, and on a busy machine threads that wait for each other at
    # every operation take 25 times as long. RNNKERNELS_TEST_THREADS=2 runs everything with two.
    torch.set_num_threads(int(os.environ.get("RNNKERNELS_TEST_THREADS", "1")))
    config.addinivalue_line("markers", "backends(*names): the backends to run a test on instead of reference and cpu")
    config.addinivalue_line("markers", "gpu: runs on a CUDA GPU; skipped where torch finds none")


#: Files that take minutes. Begun first, they do not keep one process busy when the others have nothing left.
LONG_FILES = ("test_triton_compile", "test_compile", "test_triton_grid")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG_FILES.index(item.path.stem) if item.path.stem in LONG_FILES else len(LONG_FILES))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch finds no usable GPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("backends")
    names = marker.args if marker else DEFAULT_BACKENDS
    unknown = set(names) - set(NAMES)
    if unknown:
        raise ValueError(f"{metafunc.definition.nodeid} asks for unknown backends {sorted(unknown)}")
    metafunc.parametrize("backend", names, indirect=True)


def require_native(config: pytest.Config) -> None:
    """Skip the calling test if the native library is missing, or fail it where that would hide a lost backend."""
    reason = native.missing()
    if reason is None:
        return
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if config.getoption("--require-native") and compiler:
        pytest.fail(f"the native library is missing although {compiler} could build it: {reason}", pytrace=False)
    pytest.skip(f"the native library is missing: {reason}")


def require_triton(config: pytest.Config) -> None:
    """Skip the calling test if Triton is missing, or fail it where that would hide a lost backend."""
    reason = triton.missing()
    if reason is None:
        return
    if config.getoption("--require-triton"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_interpreter(config: pytest.Config) -> None:
    """Skip the calling test unless Triton's kernels run on CPU tensors."""
    require_triton(config)
    if not triton.interpreted():
        pytest.skip("Triton's kernels are compiled here, not interpreted (TRITON_INTERPRET=1): test_gpu.py runs them")


@pytest.fixture
def backend(request: pytest.FixtureRequest):
    """The name of a backend, which the whole test runs on."""
    if request.param == "cpu":
        require_native(request.config)
    if request.param == "triton":
        require_interpreter(request.config)
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def native_library(request: pytest.FixtureRequest) -> None:
    """For tests of the native operators themselves."""
    require_native(request.config)


@pytest.fixture
def interpreter(request: pytest.FixtureRequest) -> None:
    """For tests that run Triton's kernels on CPU tensors."""
    require_interpreter(request.config)


@pytest.fixture(autouse=True)
def own_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run of the GPU acceptance gives Triton's interpreter a processor and pretends a GPU: the next test has neither."""
    sequence = sys.modules.get("rnnkernels.backends.triton.sequence")
    if sequence is not None:
        monkeypatch.setattr(sequence, "INTERPRETER", sequence.INTERPRETER)
    schedules = sys.modules.get("benchmarks.gpu_acceptance.schedules")
    if schedules is not None:
        monkeypatch.setattr(schedules, "_stand_ins", {})
        monkeypatch.setattr(torch.cuda, "get_device_properties", torch.cuda.get_device_properties)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20240607)


@pytest.fixture
def threads():
    """``threads(n)`` sets torch's thread count; the old count comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch fills every new tensor with NaN (or the largest integer)."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # CUDA's products would want an environment variable
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=("native", "native-attributes", "torch"))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What every stream of the test computes with: its two engines, and the native one reading tensors by their attributes, as it
    does where torch has no C interface for that."""
    if request.param == "torch":
        monkeypatch.setattr(streaming, "_native_session", lambda: (None, "a test asks for torch"))
        return "torch"
    require_native(request.config)
    if request.param == "native-attributes":
        session, _ = streaming._native_session()
        monkeypatch.setattr(streaming, "_native_session", lambda: (functools.partial(session, use_exchange=False), None))
    return "native"


@pytest.fixture
def precision() -> Iterator:
    """``precision(name)`` sets how float32 products of recurrent layers are computed."""
    switch = torch.backends.cudnn.rnn
    before = switch.fp32_precision

    def set_to(name: str) -> None:
        switch.fp32_precision = name

    yield set_to
    switch.fp32_precision = before
