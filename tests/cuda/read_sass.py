"""Compiles the CUDA kernels for a GPU that need not be there, and reads what became of them.

    python read_sass.py --nvcc NVCC --cuobjdump CUOBJDUMP --sources csrc/cuda \\
        --unit Lstm BFloat16Product sm_90a [--unit ...] --steps sm_90a [--steps ...]

For every kernel of a step: so few registers that a multiprocessor is full of its threads, no stack frame, no spill, no access to
local memory, no barrier and no atomic operation.

For every recurrence kernel: at most 255 registers, no stack frame, no spill, no access to local memory; the products run on the
tensor cores; and between the first and the last of them, which is the time loop, no fence that waits for the whole memory, no
barrier of a cluster, and forward no barrier of a CTA either where CTAs form a cluster (warps that share their units, in the deep
tile, meet in pairs). Where they form a grid: no fence at all but the ring's release, and no atomic operation.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MOST_REGISTERS = 255
MOST_REGISTERS_OF_A_STEP = 64  # 1024 threads of 65536 registers
KERNEL = re.compile(r"\d(?:forward|backward)_kernelI")  # not pack_forward_kernel


def output_of(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{result.stdout[-4000:]}")
    return result.stdout


def title(mangled):
    """A kernel's name for people: pass, tile, exchange."""
    tile = ", ".join(re.findall(r"Li(\d+)E", mangled.split("TileI")[1])[:6])
    exchange = next((name for name in ("cluster", "grid") if f"{name.title()}Exchange" in mangled), "one CTA")
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
    if "GridExchange" in mangled:
        yield from complaints_about_a_grid("forward_kernel" in mangled, opcodes)
    if cluster and not any(op.startswith(("STAS", "ST.ASYNC", "SYNCS")) for op in opcodes):
        yield "no asynchronous store or mbarrier"


def complaints_about_a_grid(forward, opcodes):
    strong = [op for op in opcodes if "STRONG.GPU" in op]
    if not any(op.startswith("LD") for op in strong) or not any(op.startswith("ST") for op in strong):
        yield "no loads and stores that other CTAs take part in"
    # Forward there is one release, once in half a round of the ring. Everything else says by itself whether it has come.
    fences = sum(op.startswith("MEMBAR") for op in opcodes)
    if fences != (1 if forward else 0):
        yield f"{fences} fences"
    atomic = [op for op in opcodes if op.startswith(("ATOM", "RED."))]
    if atomic:
        yield f"{len(atomic)} atomic operations"


def complaints_about_a_step(used, opcodes):
    registers, stack, spilled = used
    if registers > MOST_REGISTERS_OF_A_STEP:
        yield f"{registers} registers"
    if stack or spilled:
        yield f"{stack} bytes of stack, {spilled} bytes spilled"
    for name in ("LDL", "STL", "BAR", "ATOM", "RED"):
        if any(op.startswith(name) for op in opcodes):
            yield f"{name} in it"


def compiled(arguments, source, architecture, defines, cubin):
    """Resources and instructions of a source's kernels."""
    flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas", "-v", *defines]
    log = output_of([arguments.nvcc, *flags, "-cubin", arguments.sources / source, "-o", cubin])
    return resources(log), instructions(output_of([arguments.cuobjdump, "-sass", cubin]))


def check_steps(arguments, architecture, directory):
    used, opcodes = compiled(arguments, "stepwise.cu", architecture, [], directory / f"steps_{architecture}.cubin")
    lines, failed = [], False
    for mangled in sorted(used):
        kernel = re.search(r"step_[a-z_]*(?=_kernel)", mangled)[0]
        types = re.findall(r"Lstm|Gru|B?Float16", mangled) + re.findall(r"[EI]([df])EEv", mangled)
        name = " ".join([kernel, *({"d": "double", "f": "float"}.get(t, t) for t in types)])
        wrong = list(complaints_about_a_step(used[mangled], opcodes[mangled]))
        failed = failed or bool(wrong)
        lines.append(f"  {name:45} {used[mangled][0]:3} registers  {'; '.join(wrong) or 'ok'}")
    if len(lines) != 24:
        raise SystemExit(
            f"{len(lines)} kernels in stepwise.cu: two of each cell and two of projections, in four dtypes, are expected"
        )
    return [f"steps {architecture}", *lines], failed


def check(arguments, unit, directory):
    cell, product, architecture = unit
    defines = [f"-DRNNKERNELS_CELL={cell}", f"-DRNNKERNELS_PRODUCT={product}"]
    cubin = directory / f"{'_'.join(unit)}.cubin"
    used, opcodes = compiled(arguments, "recurrence.cu", architecture, defines, cubin)
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
    for name in ("nvcc", "cuobjdump", "sources"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--unit", action="append", nargs=3, metavar=("CELL", "PRODUCT", "ARCHITECTURE"), required=True)
    parser.add_argument("--steps", action="append", metavar="ARCHITECTURE", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        checks = [(check_steps, architecture) for architecture in arguments.steps] + [(check, unit) for unit in arguments.unit]
        results = list(pool.map(lambda item: item[0](arguments, item[1], Path(scratch)), checks))
    for lines, _ in results:
        print("\n".join(lines))
    sys.exit(any(failed for _, failed in results))


if __name__ == "__main__":
    main()
