"""Every tiling that is shipped compiles for each architecture: within its registers and shared memory, on its matrix units.

A tiling needs the more of both, the more hidden units' weights stay on chip: it is compiled at the largest hidden size it is
offered for. That takes minutes for each architecture: by default it is sm_90; RNNKERNELS_TEST_COMPILE names another one, or says
"every". "all" compiles every tiling at every size, half type and combination of flags, too, which takes hours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from cubins import DEVICES, Configuration, Report, compile_all

from rnnkernels.backends.triton.plan import STEPWISE, Tiling, candidates

WANTED = os.environ.get("RNNKERNELS_TEST_COMPILE", "sm_90")
EVERYTHING = WANTED == "all"
ARCHITECTURES = list(DEVICES) if WANTED in ("all", "every") else [WANTED]
#: What Triton compiled is kept there, and found again while nothing it depends on has changed.
CACHE = Path(__file__).resolve().parent.parent / "build" / "triton-cache"

#: Bytes per thread that ptxas may keep on the stack, of what it needs rarely.
SET_ASIDE = 64

NVIDIA = [name for name in ARCHITECTURES if name.startswith("sm_")]
PASSES = [(cell, backward) for cell in ("lstm", "gru") for backward in (False, True)]
#: bfloat16 and float16 differ in the name of their instructions only.
PRODUCTS = [("bfloat16", "ieee"), ("float32", "tf32"), ("float32", "tf32x3")] + [("float16", "ieee")] * EVERYTHING

#: (architecture, cell, backward, dtype, precision)
Group = tuple[str, str, bool, str, str]
GROUPS = [(architecture, *own, *product) for architecture in NVIDIA for own in PASSES for product in PRODUCTS]
POINTWISE = [
    (architecture, *own, dtype, "ieee") for architecture in ARCHITECTURES for own in PASSES for dtype in ("bfloat16", "float64")
]
AMD = [
    (name, *own, dtype, "ieee")
    for name in ARCHITECTURES
    if name.startswith("gfx")
    for own in PASSES
    for dtype in ("bfloat16", "float32")
]


def tiled(group: Group) -> Iterator[Configuration]:
    """Every tiling of a pass at the largest hidden size it is offered for; or at every size, with every flag."""
    largest = {}
    for hidden_size in (16, 32, 64, *range(128, 2560, 128)):
        configuration = Configuration(*group, hidden_size, STEPWISE)
        for tiling in candidates(configuration.work, DEVICES[group[0]])[:-1]:
            # A program's units follow the hidden size: all of its tilings are one that grows.
            grows = ("program", tiling.split > 1) if tiling.alone else tiling
            largest[grows] = configuration._replace(tiling=tiling)
            if EVERYTHING:
                yield from variants(largest[grows])
    if not EVERYTHING:
        yield from largest.values()


def variants(configuration: Configuration) -> Iterator[Configuration]:
    """With every flag, and with rows that are no multiple of 16 bytes apart, which other instructions load."""
    for hidden_size in (configuration.hidden_size, configuration.hidden_size - 1):
        for packed in (False, True):
            for training in (False, True):
                yield configuration._replace(hidden_size=hidden_size, packed=packed, training=training)


def pointwise(group: Group) -> Iterator[Configuration]:
    aligned = Configuration(*group, 64, STEPWISE, training=False)
    yield from variants(aligned) if EVERYTHING else (aligned, aligned._replace(hidden_size=63, training=True))


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest) -> dict[Configuration, list[Report]]:
    """What the selected tests ask about, compiled in one go."""
    asked = [item.callspec.params for item in request.session.items if getattr(item, "callspec", None)]
    # A test that is left without a group has a placeholder for it.
    wanted = [c for params in asked if isinstance(params.get("group"), tuple) for c in params["kind"](params["group"])]
    return compile_all(list(dict.fromkeys(wanted)), CACHE)


def of_each(kind, groups: list[Group]):
    ids = ["-".join(("backward" if g is True else "forward" if g is False else g) for g in group) for group in groups]
    return pytest.mark.parametrize(("kind", "group"), [(kind, group) for group in groups], ids=ids)


def crowded(configuration: Configuration) -> bool:
    """Offered, measured best elsewhere, but not fit for Blackwell: all of a program's products come out of tensor memory at
    once, and leave too few registers for the gates."""
    tiling = Tiling(*configuration.tiling)
    large = configuration.precision == "tf32x3" or tiling.units == 128
    return configuration.architecture == "sm_100" and tiling.alone and tiling.split == 1 and large


@of_each(tiled, GROUPS)
def test_a_step_keeps_to_its_registers(reports, kind, group: Group) -> None:
    """Nothing is spilled in the time loop; ptxas may set aside a few values that are needed before and after it."""
    for configuration in kind(group):
        if crowded(configuration):
            continue
        for report in reports[configuration]:
            assert report.registers <= 255, configuration
            assert report.in_loop["local memory"] == 0, f"{configuration}: {report}"
            assert report.stack <= SET_ASIDE, f"{configuration}: {report}"


@of_each(tiled, GROUPS)
def test_shared_memory_is_within_the_plans_estimate_and_the_device(reports, kind, group: Group) -> None:
    for configuration in kind(group):
        for report in reports[configuration]:
            assert report.shared <= report.estimate <= DEVICES[group[0]].shared_memory, f"{configuration}: {report}"


@of_each(tiled, GROUPS)
def test_every_step_multiplies_on_matrix_units_and_a_grid_meets_at_a_barrier(reports, kind, group: Group) -> None:
    for configuration in kind(group):
        for report in reports[configuration]:
            assert report.in_loop["matrix"] > 0, configuration
            assert (report.in_loop["arrival"] > 0) == (configuration.schedule == "grid"), configuration


@of_each(tiled, GROUPS + AMD)
def test_a_grids_steps_read_where_the_step_before_wrote(reports, kind, group: Group) -> None:
    """Triton's interpreter does not show it: compiled, a loop may take for constant what changes (see ``tiles.no_step``)."""
    for configuration in kind(group):
        for report in reports[configuration]:
            where = {"begin", "begin_before", "n_before"}
            assert where <= set(report.carried) or configuration.schedule != "grid", f"{configuration}: {report}"


@of_each(pointwise, POINTWISE)
def test_pointwise_kernels_of_the_stepwise_schedule_compile_for_every_architecture(reports, kind, group: Group) -> None:
    for configuration in kind(group):
        assert reports[configuration], "no kernel was launched"
        for report in reports[configuration]:
            assert report.stack <= SET_ASIDE, f"{configuration}: {report}"


@of_each(tiled, AMD)
def test_an_amd_gpu_gets_kernels_that_fit_it(reports, kind, group: Group) -> None:
    for configuration in kind(group):
        for report in reports[configuration]:
            assert report.shared <= DEVICES[group[0]].shared_memory, f"{configuration}: {report}"
            assert report.in_loop["matrix"] > 0, configuration
