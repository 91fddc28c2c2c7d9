# make demo, make test, make bench: each sets up what it needs, in .venv and build/, and is quick when run again.
#
# Needed before: Python >= 3.10, a C++17 compiler, make. Everything else comes from PyPI.
#
# On Linux x86-64 PyPI's torch is the CUDA build: several gigabytes with its libraries. For the CPU build:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

comma := ,
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Without the kernels there is nothing to demonstrate or test: a build that fails is an error here.
export RNNKERNELS_BUILD_CPU ?= 1

# Triton has no packages for other systems.
EXTRAS := test,demo,bench,examples$(if $(filter Linux,$(shell uname)),$(comma)triton)

VENV := .venv
BIN := $(VENV)/bin
# The package is installed in place: only what is compiled makes it stale.
NATIVE := setup.py pyproject.toml $(wildcard csrc/*/* csrc/cuda/schedules/*)
CPP_TESTS := CMakeLists.txt $(wildcard tests/cpp/* tests/emulation/* tests/cuda/*)

# The oldest Triton that is supported, torch 2.11's, with a numpy that its interpreter works with. It stands before the newest one.
OLD_TRITON := $(VENV)/triton-3.6
TRITON_TESTS := $(filter-out %_compile.py,$(wildcard tests/test_triton_*.py))

# A process per core, each with whole files: what a file sets up, it sets up once.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile

.PHONY: all demo test test-cpp test-python test-old-triton test-thorough bench study clean

all: $(VENV)/.package

demo: $(VENV)/.package
	$(BIN)/python examples/char_language_model.py

# All tests come last, so that their summary is the last line.
test: test-cpp $(if $(findstring triton,$(EXTRAS)),test-old-triton)
	$(MAKE) --no-print-directory test-python

test-cpp: build/release/.passed build/sanitize/.passed

test-python: $(VENV)/.package
	$(PYTEST) $(if $(findstring triton,$(EXTRAS)),--require-triton) tests

test-old-triton: $(VENV)/.package $(OLD_TRITON)/.installed
	PYTHONPATH=$(abspath $(OLD_TRITON)) $(PYTEST) --require-triton $(TRITON_TESTS)

# What `make test` leaves out, for who changed a GPU kernel, its emulation or how a kernel is compiled: half an hour more.
test-thorough: build/thorough/.passed $(OLD_TRITON)/.installed
	RNNKERNELS_TEST_COMPILE=every $(PYTEST) --require-triton tests/test_triton_compile.py
	PYTHONPATH=$(abspath $(OLD_TRITON)) $(PYTEST) --require-triton tests/test_triton_compile.py

# BENCH="--grid targets --providers rnnkernels,peers" for more; peers are in the extra of that name.
bench: $(VENV)/.package
	$(BIN)/python -m benchmarks run --out out/bench.json $(BENCH); status=$$?; \
		$(BIN)/python -m benchmarks report out/bench.json --figures out/bench && exit $$status

# Ten minutes of an idle machine; STUDY=--quick for a few.
study: $(VENV)/.package
	$(BIN)/python -m benchmarks study $(STUDY)

clean:
	rm -rf $(VENV) build out rnnkernels.egg-info rnnkernels/lib rnnkernels/_C.*

$(VENV)/.tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install "setuptools>=77" wheel "pybind11>=2.13" cmake ninja
	touch $@

$(VENV)/.package: $(VENV)/.tools $(NATIVE)
	$(BIN)/python -m pip install --no-build-isolation -e ".[$(EXTRAS)]"
	touch $@

# Nothing that they depend on: torch is there, and would be gigabytes.
$(OLD_TRITON)/.installed: $(VENV)/.tools
	$(BIN)/python -m pip install --no-deps --upgrade --target $(OLD_TRITON) "triton==3.6.0" "numpy<2.4"
	touch $@

# The C++ tests, as they are shipped and under AddressSanitizer and UndefinedBehaviorSanitizer. The package is there before them:
# Triton's wheel has the program that reads what nvcc compiles.
build/release/.passed build/sanitize/.passed build/thorough/.passed: build/%/.passed: $(VENV)/.package $(NATIVE) $(CPP_TESTS)
	$(BIN)/cmake -S . -B build/$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython3_EXECUTABLE=$(abspath $(BIN)/python) \
		$(if $(filter sanitize,$*),-DRNNKERNELS_SANITIZE=address$(comma)undefined) \
		$(if $(filter thorough,$*),-DRNNKERNELS_THOROUGH=ON)
	$(BIN)/cmake --build build/$*
	$(BIN)/ctest --test-dir build/$* --output-on-failure --parallel $(CORES)
	touch $@

