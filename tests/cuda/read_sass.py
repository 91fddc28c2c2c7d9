"""Compiles the CUDA kernels for a GPU that need not be there, and reads what became of them.

    python read_sass.py --nvcc NVCC --cuobjdump CUOBJDUMP --source csrc/cuda/recurrence.cu \\
        --unit Lstm BFloat16Product sm_90a [--unit ...]

For every recurrence kernel: at most 255 registers, no stack frame, no spill, no access to local memory; the products run on the
tensor cores; and between the first and the last of them, which is the time loop, no fence that waits for the whole memory, no
barrier of a cluster, and forward no barrier of a CTA either where CTAs form a cluster (warps that share their units, in the deep
tile, meet in pairs).
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MOST_REGISTERS = 255
KERNEL = re.compile(r"\d(?:forward|backward)_kernelI")  # not pack_forward_kernel


def output_of(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{result.stdout[-4000:]}")
    return result.stdout


def title(mangled):
    """A kernel's name for people: pass, tile, exchange."""
    tile = ", ".join(re.findall(r"Li(\d+)E", mangled.split("TileI")[1])[:6])
    exchange = "cluster" if "ClusterExchange" in mangled else "one CTA"
    return f"{'forward' if 'forward_kernel' in mangled else 'backward'} <{tile}> {exchange}"


def resources(log):
    """Registers, stack frame and spilled bytes by mangled name, from ptxas -v."""
    found = {}
    for entry in log.split("Compiling entry function '")[1:]:
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        found[entry.split("'")[0]] = (int(registers[1]), int(frame[1]), int(frame[2]) + int(frame[3]))
    return found


def instructions(sass):
    """Opcodes in order, by mangled name."""
    functions = re.split(r"\n\s*Function : ", sass)[1:]
    opcode = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?([A-Z][A-Z0-9_.]*)")
    return {text.split("\n", 1)[0].strip(): opcode.findall(text) for text in functions}


def complaints(mangled, used, opcodes):
    registers, stack, spilled = used
    if registers > MOST_REGISTERS:
        yield f"{registers} registers"
    if stack or spilled:
        yield f"{stack} bytes of stack, {spilled} bytes spilled"
    local = [op for op in opcodes if op.startswith(("LDL", "STL"))]
    if local:
        yield f"{len(local)} accesses to local memory"
    products = [i for i, op in enumerate(opcodes) if op.startswith("HMMA")]
    if not products:
        yield "no product on the tensor cores"
        return
    loop = opcodes[products[0] : products[-1]]
    cluster = "ClusterExchange" in mangled
    forbidden = ["MEMBAR", "ERRBAR", "UCGABAR", "CCTL.IVALL"]
    if cluster and "forward_kernel" in mangled and "TileILi1ELi1ELi2E" not in mangled and "TileILi1ELi2ELi2E" not in mangled:
        forbidden.append("BAR.")
    for name in forbidden:
        if any(op.startswith(name) for op in loop):
            yield f"{name} in the time loop"
    if cluster and not any(op.startswith(("STAS", "ST.ASYNC", "SYNCS")) for op in opcodes):
        yield "no asynchronous store or mbarrier"


def check(arguments, unit, directory):
    cell, product, architecture = unit
    cubin = directory / f"{'_'.join(unit)}.cubin"
    defines = [f"-DRNNKERNELS_CELL={cell}", f"-DRNNKERNELS_PRODUCT={product}"]
    flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas", "-v", *defines]
    log = output_of([arguments.nvcc, *flags, "-cubin", arguments.source, "-o", cubin])
    used, opcodes = resources(log), instructions(output_of([arguments.cuobjdump, "-sass", cubin]))
    has_clusters = int(re.search(r"\d+", architecture)[0]) >= 90
    lines, failed = [], False
    for mangled in sorted(used):
        if not KERNEL.search(mangled) or ("ClusterExchange" in mangled and not has_clusters):
            continue
        wrong = list(complaints(mangled, used[mangled], opcodes[mangled]))
        failed = failed or bool(wrong)
        lines.append(f"  {title(mangled):45} {used[mangled][0]:3} registers  {'; '.join(wrong) or 'ok'}")
    if len(lines) < 4:
        raise SystemExit(f"only {len(lines)} kernels found in {cubin.name}: the names are not what this script expects")
    return [f"{cell} {product} {architecture}", *lines], failed


def main():
    parser = argparse.ArgumentParser()
    for name in ("nvcc", "cuobjdump", "source"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--unit", action="append", nargs=3, metavar=("CELL", "PRODUCT", "ARCHITECTURE"), required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda unit: check(arguments, unit, Path(scratch)), arguments.unit))
    for lines, _ in results:
        print("\n".join(lines))
    sys.exit(any(failed for _, failed in results))


if __name__ == "__main__":
    main()
