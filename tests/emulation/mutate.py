"""Breaks a copy of the CUDA kernels, one way at a time, and expects the emulation to notice.

    python mutate.py --compiler c++ --root REPOSITORY [--all]

A mutation costs a compilation or two: without --all one in SAMPLE is tried, and of the others only whether they would still
change something. A mutant counts as caught when its tests fail: by numbers, by a rule of the machine, by a deadlock, or by
AddressSanitizer or ThreadSanitizer. The tests must pass on the kernels as they are.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FORWARD, BACKWARD = "csrc/cuda/schedules/forward.h", "csrc/cuda/schedules/backward.h"
FORWARD_LAYOUT, BACKWARD_LAYOUT = "csrc/cuda/schedules/forward_layout.h", "csrc/cuda/schedules/backward_layout.h"
STEPS, STEP_ORDER = "csrc/cuda/schedules/stepwise.h", "csrc/cuda/stepwise.cpp"
EXCHANGE, LAYOUT = "csrc/cuda/schedules/exchange.h", "csrc/cuda/schedules/layout.h"
GRID = "csrc/cuda/schedules/grid.h"


SAMPLE = 6


@dataclass
class Mutation:
    name: str
    file: str
    old: str
    new: str
    ways: tuple[str, ...] = ("numbers and rules", "ThreadSanitizer")  # the cheapest first
    test: tuple[str, ...] = ("tests/emulation/test_mutant.cpp",)  # sources of the program that is to notice


MUTATIONS = [
    Mutation("no warp barrier before the staged h is read", FORWARD, "    device::warp_barrier();\n", ""),
    Mutation("no barrier between the cell's backward and the product", BACKWARD, "      device::cta_barrier();\n", ""),
    Mutation(
        "no barrier between the warps that share units",
        FORWARD,
        "    device::named_barrier(1 + own_.block, 2 * kLanes);\n",
        "",
    ),
    Mutation(
        "no barrier of the CTA between steps",
        EXCHANGE,
        "RNN_DEVICE void wait(int) const { device::cta_barrier(); }",
        "RNN_DEVICE void wait(int) const {}",
    ),
    Mutation(
        "a CTA's barrier where a cluster's is needed",
        EXCHANGE,
        "before the others' barriers and buffers are ready.\n    device::cluster_barrier();",
        "x\n    device::cta_barrier();",
    ),
    Mutation("wrong parity", EXCHANGE, "uint32_t(k - 1) / 2 % 2)", "uint32_t(k) / 2 % 2)"),
    Mutation("no wait for h", FORWARD, "      if (k > 0) exchange_.wait(k);\n", ""),
    Mutation("no wait for the shares of d(h)", BACKWARD, "      if (k > 0) receive(k);\n", ""),
    Mutation("too many bytes expected", FORWARD, "Tile::kRows * int(sizeof(Operand));\n    if", "Tile::kRows * 4;\n    if"),
    Mutation(
        "too few bytes expected",
        BACKWARD,
        "p_.partition.units * Tile::kRows * int",
        "(p_.partition.units - 8) * Tile::kRows * int",
    ),
    Mutation("a buffer used again too early", LAYOUT, "(k & 1) * distance", "0 * k"),
    Mutation(
        "a staging buffer used again too early",
        FORWARD,
        "(own_.warp * 2 + k % 2) * Shared::kStaged;",
        "(own_.warp * 2) * Shared::kStaged;",
    ),
    Mutation(
        "sums for the other warp written too early",
        FORWARD,
        "float* mine = partial(own_.warp, k);",
        "float* mine = partial(own_.warp, 1);",
    ),
    Mutation(
        "a tile off by one",
        FORWARD,
        "const int first = (first_unit_ + own_.block * Own::kUnits) *",
        "const int first = (first_unit_ + own_.block * Own::kUnits + 8) *",
    ),
    Mutation("a weight tile off by one", BACKWARD_LAYOUT, "place.pass) + place.tile) *", "place.pass) + place.tile + 1) *"),
    Mutation(
        "shared memory too small",
        FORWARD_LAYOUT,
        "warps * 2 * kStaged",
        "warps * kStaged",
        ("AddressSanitizer",),
    ),
    Mutation("lengths ignored", BACKWARD, "return own_.row(tile, column) < rows_.active && unit", "return unit"),
    Mutation("states of sequences that are not active", FORWARD, "state.h = active ? next.h : state.h;", "state.h = next.h;"),
    Mutation("the odd windows' sums left out", LAYOUT, "[i % 4] += more[", "[i % 4] += 0 * more["),
    Mutation("a neighbour's shares taken for one's own", BACKWARD, "odd ? d[0] : d[2], 1", "odd ? d[2] : d[0], 1"),
    Mutation(
        "shares sent to the wrong CTA",
        BACKWARD,
        "exchange_.send(k, own.owner,",
        "exchange_.send(k, p_.partition.ctas - 1 - own.owner,",
    ),
]

GRID_TEST = ("tests/emulation/test_mutant_grid.cpp",)
MUTATIONS += [
    Mutation(name, file, old, new, ("numbers and rules",), GRID_TEST)
    for name, file, old, new in [
        ("words of h taken before they have come", GRID, "while (device::any(!whole(columns)))", "while (false)"),
        ("one word of four awaited", GRID, "i < 4; ++i) empty = empty", "i < 1; ++i) empty = empty"),
        ("an empty word sent as it is", GRID, "value.words[i] = kOtherNan;", "{}"),
        ("a slot used again too early", GRID, "uint32_t(k) % kSlots) *", "uint32_t(k) % kPeriod) *"),
        ("slots not emptied", GRID, "if (k >= 2) device::store16", "if (false) device::store16"),
        ("slots emptied too early", GRID, "at(k - 2, row, byte)", "at(k - 1, row, byte)"),
        ("a flag raised without a release", GRID, "device::store_release(&place_.flags[rank()],", "(place_.flags[rank()] ="),
        ("a flag raised before what it says", GRID, "kReleasePhase = 2;", "kReleasePhase = 0;"),
        ("another CTA's flag awaited", GRID, "wait_for_flag(&place_.flags[i]", "wait_for_flag(&place_.flags[0]"),
        ("no flag awaited", GRID, "if (k % kPeriod != 0) return;", "return;"),
        ("an epoch ahead awaited", GRID, "uint32_t(k / kPeriod));", "uint32_t(k / kPeriod + 1));"),
        (
            "no barrier between parts of sums and the cell",
            FORWARD,
            "    device::cta_barrier();\n    exchange_.release(k);",
            "    exchange_.release(k);",
        ),
        ("shares of the use before taken", GRID, "return 1 - uint32_t(k - 1) / 2 % 2;", "return 1;"),
        ("one share of four awaited", GRID, "(j >= words || ", "(j >= 1 || "),
        ("one slot for all shares", GRID, "(k & 1) * sources_", "0 * sources_"),
        ("no barrier after the shares", GRID, "(sum[3])}});\n    }\n    device::cta_barrier();", "(sum[3])}});\n    }"),
        (
            "shares of another source",
            BACKWARD,
            "shares<Own::kUnits, Tile::kRows>(k, source)",
            "shares<Own::kUnits, Tile::kRows>(k, 0)",
        ),
    ]
]

# Kernels of a step share nothing and run one after another: what can go wrong is what they read and write, and the order.
STEP_TEST = ("tests/emulation/test_stepwise.cpp", STEP_ORDER)
MUTATIONS += [
    Mutation(name, file, old, new, ("numbers and rules",), STEP_TEST)
    for name, file, old, new in [
        ("the other direction's product", STEPS, "p.product) + (at.direction * s.batch + at.row)", "p.product) + at.row"),
        ("states of rows that are not active", STEPS, "  if (at.row >= step.active) return;", "  if (at.row >= s.batch) return;"),
        ("d(h) not handed on", STEPS, "if (direct != nullptr) direct[at.index] = dh;", ""),
        ("a product that nobody made", STEPS, "if (at.row < p.known[at.direction])", "if (at.row < s.batch)"),
        ("gradients of the wrong side", STEPS, "gradient.gates[Cell::hidden_side(gate)]", "gradient.gates[gate]"),
        ("the state after instead of before", STEP_ORDER, "order.rows(d, i - 1)", "order.rows(d, i)"),
        ("the output's gradient in the other order", STEP_ORDER, "order.time(d, i) *", "i *"),
        ("no product for the last step back", STEP_ORDER, "dh.known[d] = step.step[d].active;\n  }", "dh.known[d] = 0;\n  }"),
    ]
]

RUNTIME = [f"csrc/emulation/{name}.cpp" for name in ("runtime", "mechanisms", "collectives", "global_memory")]
MAIN = ["tests/cpp/main.cpp", "csrc/cpu/dispatch.cpp"]
FLAGS = ["-std=c++17", "-O1", "-g1", "-DRNNKERNELS_EMULATION_GUARDS", "-DRNNKERNELS_TEST_FEW"]
# Flags of the kernels, then of the runtime. Where nothing is instrumented, compiling is what takes long.
WAYS = {
    "numbers and rules": (["-O0", "-g0"], []),
    "AddressSanitizer": (["-fsanitize=address"], ["-fsanitize=address"]),
    "ThreadSanitizer": (["-fsanitize=thread"], ["-DRNNKERNELS_EMULATION_TSAN"]),
}


def compile_objects(compiler, root, sources, flags, directory):
    objects = []
    for source in sources:
        target = directory / (Path(source).stem + ".o")
        subprocess.run([compiler, *FLAGS, *flags, "-c", root / source, "-o", target], check=True)
        objects.append(target)
    return objects


class Suite:
    def __init__(self, compiler, root, scratch):
        self.compiler, self.root, self.scratch = compiler, root, scratch
        self.common = {}
        for way, (kernels, runtime) in WAYS.items():
            directory = scratch / way.replace(" ", "_")
            directory.mkdir()
            self.common[way] = compile_objects(compiler, root, RUNTIME, runtime, directory)
            self.common[way] += compile_objects(compiler, root, MAIN, kernels, directory)

    def notices(self, way, tree, test=Mutation.test):
        """What a test of this tree prints when it fails, or None when it passes."""
        kernels, _ = WAYS[way]
        program = tree / (way.replace(" ", "_") + Path(test[0]).stem)
        sources = [tree / source for source in test]
        subprocess.run([self.compiler, *FLAGS, *kernels, *sources, *self.common[way], "-o", program], check=True)
        command = ["setarch", "-R", program] if way == "ThreadSanitizer" else [program]
        environment = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
        result = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
        )
        if result.returncode == 0:
            return None
        lines = [line for line in result.stdout.splitlines() if "SUMMARY" in line or ": " in line]
        first = lines[0] if lines else f"exit status {result.returncode}"
        return next((line for line in lines if "SUMMARY" in line), first)[-140:]

    def tree(self, mutation, index):
        tree = self.scratch / f"mutant{index}"
        for part in ("csrc", "tests/emulation", "tests/cpp"):
            shutil.copytree(self.root / part, tree / part)
        if mutation is not None:
            path = tree / mutation.file
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
        return tree

    def try_one(self, item):
        index, mutation = item
        tree = self.tree(mutation, index)
        for way in mutation.ways:
            noticed = self.notices(way, tree, mutation.test)
            if noticed is not None:
                return f"{mutation.name}: caught by {way}: {noticed}", True
        return f"{mutation.name}: NOT caught", False


def check_texts(root):
    """Stop if a mutation would change nothing."""
    for mutation in MUTATIONS:
        if mutation.old not in (root / mutation.file).read_text():
            raise SystemExit(f"{mutation.name}: {mutation.file} has no {mutation.old!r}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    check_texts(arguments.root)
    mutations = MUTATIONS if arguments.all else MUTATIONS[::SAMPLE]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        suite = Suite(arguments.compiler, arguments.root.resolve(), Path(scratch))
        whole = suite.tree(None, "none")
        for way in WAYS:
            noticed = suite.notices(way, whole)
            if noticed is not None:
                sys.exit(f"the kernels as they are fail by {way}: {noticed}")
        for test in (STEP_TEST, GRID_TEST):
            noticed = suite.notices("numbers and rules", whole, test)
            if noticed is not None:
                sys.exit(f"{test[0]} fails on the kernels as they are: {noticed}")
        results = list(pool.map(suite.try_one, enumerate(mutations)))
    for line, _ in results:
        print(line)
    print(f"{sum(caught for _, caught in results)} of {len(results)} mutants caught")
    sys.exit(not all(caught for _, caught in results))


if __name__ == "__main__":
    main()
