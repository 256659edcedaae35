"""Compile every configuration of the tile table for every GPU generation, without a GPU.

    python -m bench.dev.compile                all of them, as CSV; exit code 1 if one is bad
    python -m bench.dev.compile --sample 12     every n-th, so that about 12 are left
    python -m bench.dev.compile --write         to tests/bench/dev/compiled.csv, if none is bad

Read off the compiled code: registers, stack and spills, shared memory, tensor-core and TMA
instructions. A configuration is bad if it spills or uses a stack, needs more shared memory than
the chip has, or lacks tensor cores where there are some (wgmma on sm_90 for tiles of 64 rows);
one of runs also if the compiler keeps fewer buffers than its stages ask for.
"""

import argparse
import csv
import hashlib
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import sparse_kernels
from bench.dev.configurations import (
    PASSES,
    Configuration,
    arguments,
    configurations,
    run_of,
    signature,
)
from bench.dev.cubin import disassembled, resources
from sparse_engine.config.flags import run_command
from sparse_kernels.triton.tiles import SHARED_LIMIT

TABLE = Path(__file__).parents[2] / "tests" / "bench" / "dev" / "compiled.csv"
COLUMNS = (
    *("gpu", "pass", "variant", "type", "block", "bm", "bk", "warps", "stages"),
    *("registers", "shared_bytes", "buffers", "instructions"),
)
COUNTED = {
    "wgmma": r"HGMMA",
    "tcgen05": r"UTC\w*MMA",
    "mma": r"\bHMMA",
    "tma": r"UTMALDG",
    "spills": r"\bSTL",
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a configuration."""

    configuration: Configuration
    tile: Any
    registers: int
    stack: int
    shared: int
    buffers: int
    instructions: dict[str, int]

    def problems(self) -> list[str]:
        """Return what is wrong with it, in words."""
        c, found = self.configuration, []
        if self.stack or self.instructions["spills"]:
            found.append(f"stack {self.stack}, {self.instructions['spills']} spills")
        if self.shared > SHARED_LIMIT[c.arch]:
            found.append(f"shared memory {self.shared} above {SHARED_LIMIT[c.arch]}")
        tensor_cores = sum(self.instructions[k] for k in ("wgmma", "tcgen05", "mma"))
        multiplies = c.kernel in PASSES
        if multiplies and c.dtype != "fp32" and not tensor_cores:
            found.append("no tensor-core instruction")
        wide = (c.block[1] if c.kernel == "weight gradient" else self.tile.bm) >= 64
        has_wgmma = multiplies and wide and (c.arch, c.dtype) == (90, "bf16")
        if has_wgmma and not self.instructions["wgmma"]:
            found.append("no wgmma")
        if c.tma and not self.instructions["tma"]:
            found.append("no TMA")
        # mma reads a buffer before it asks for the next; what is transformed is read at once, too.
        wanted = self.tile.stages - (not self.instructions["wgmma"] or c.fused)
        if c.strips and self.buffers < wanted:
            found.append(f"{self.buffers} buffers of {wanted}")
        return found


def compile_one(configuration: Configuration) -> Compiled:
    """Compile a configuration and read the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants, descriptors, tile = arguments(configuration)
    names = kernel.arg_names
    kinds, attributes = signature(configuration, names, constants, descriptors)
    source = ASTSource(
        kernel,
        signature=kinds,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs=attributes,
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    target = GPUTarget("cuda", configuration.arch, 32)
    compiled = triton.compile(source, target=target, options=options)
    registers, stack = resources(compiled.asm["cubin"])
    code = disassembled(compiled.asm["cubin"])
    counts = {name: len(re.findall(pattern, code)) for name, pattern in COUNTED.items()}
    buffers = re.findall(r"local_alloc\b.*memdesc<(\d+)x\d+x\d+xb?f\d", compiled.asm["ttgir"])
    found = (registers, stack, compiled.metadata.shared, min(map(int, buffers), default=0), counts)
    return Compiled(configuration, tile, *found)


def source_hash() -> str:
    """Return a hash of the kernels and the tiles, to see that a written table is current."""
    folder = Path(sparse_kernels.__file__).parent / "triton"
    files = sorted([*folder.glob("*_kernels.py"), *folder.glob("*tiles.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _row(found: Compiled) -> list[str]:
    c, tile = found.configuration, found.tile
    counts = " ".join(f"{name} {count}" for name, count in found.instructions.items() if count)
    variant = ("tma" if c.tma else "pointers") + " fused" * c.fused + _runs_of(c)
    block = f"{c.block[0]}x{c.block[1]}"
    numbers = (tile.bm, tile.bk, tile.warps, tile.stages)
    numbers += (found.registers, found.shared, found.buffers if c.strips else "")
    return [f"sm_{c.arch}", c.kernel, variant, c.dtype, block, *map(str, numbers), counts]


def _runs_of(c: Configuration) -> str:
    """Return what a kernel of runs does with strips."""
    run = run_of(c)
    if run is None:
        return ""
    parts = f", {run.taps} a program" if 0 < run.taps < c.strips else ""
    return f" runs of {run.length}, {c.strips} taps{parts}"


def write_table(rows: Sequence[Sequence[str]], file: TextIO) -> None:
    """Write rows as CSV, with what they were made of in a first line."""
    import triton

    file.write(f"# sources {source_hash()}, Triton {triton.__version__}\n")
    csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print or write; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, help="compile about so many, evenly spread")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}, if none is bad")
    options = parser.parse_args(arguments)
    wanted = list(configurations())
    if options.sample:
        wanted = wanted[:: max(1, len(wanted) // options.sample)]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(compile_one, wanted, chunksize=4))
    bad = [(c.configuration, c.problems()) for c in found if c.problems()]
    rows = [_row(c) for c in found]
    if not options.write:
        write_table(rows, sys.stdout)
    elif not bad:
        with TABLE.open("w", encoding="utf-8") as file:
            write_table(rows, file)
    for configuration, problems in bad:
        print(f"{configuration}: {'; '.join(problems)}", file=sys.stderr)
    print(f"{len(found)} compiled, {len(bad)} bad", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    run_command(main)
