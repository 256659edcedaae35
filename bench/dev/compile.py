"""Compile every configuration of the tile table for every GPU generation, without a GPU.

    python -m bench.dev.compile                all of them, as CSV; exit code 1 if one is bad
    python -m bench.dev.compile --sample 12     every n-th, so that about 12 are left
    python -m bench.dev.compile --write         to tests/bench/dev/compiled.csv, if none is bad

Read off the compiled code: registers, stack and spills, shared memory, tensor-core and TMA
instructions. A configuration is bad if it spills or uses a stack, needs more shared memory than
the chip has, or lacks tensor cores where there are some (wgmma on sm_90 for tiles of 64 rows).
"""

import argparse
import csv
import hashlib
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import sparse_kernels
from bench.dev.cubin import disassembled, resources
from sparse_engine.config.flags import run_command
from sparse_kernels.operators import batch_norm
from sparse_kernels.triton import sums
from sparse_kernels.triton.tiles import (
    SHARED_LIMIT,
    Tile,
    gather_tile,
    power_of_two,
    weight_grad_tile,
)

TABLE = Path(__file__).parents[2] / "tests" / "bench" / "dev" / "compiled.csv"
COLUMNS = (
    *("gpu", "pass", "variant", "type", "block", "bm", "bk", "warps", "stages"),
    *("registers", "shared_bytes", "instructions"),
)
SIZES = (16, 32, 64, 128)
PASSES = ("forward", "input gradient", "weight gradient")
TYPES = {"bf16": ("bf16", 2, "ieee"), "tf32": ("fp32", 4, "tf32"), "fp32": ("fp32", 4, "ieee")}
GEOMETRY = (1,) * 6
# With all fusions at once, which needs the most registers; alone they need no more.
FUSED_BLOCKS = ((32, 32), (64, 64), (128, 128))
COUNTED = {
    "wgmma": r"HGMMA",
    "tcgen05": r"UTC\w*MMA",
    "mma": r"\bHMMA",
    "tma": r"UTMALDG",
    "spills": r"\bSTL",
}
IMAGES = (
    *("src", "values", "bias", "dst", "x", "dy", "residual"),
    *("grad", "out", "other", "dx", "dresidual"),
)
VECTORS = (
    *("partial", "scale", "shift", "sums", "mean", "variance"),
    *("weight", "dweight", "dbias", "vectors", "running_mean", "running_variance"),
    *("gradient", "tiles", "totals"),
)
# Channel counts and strides that are multiples of 16, as launches see them.
STRIDES = r"N|C|C_\w+|ELEMENTS|VECTOR|\w+_[nhw]"
# With all that they can do at once, but for what is None.
IMAGE = {"BM": batch_norm.BM, "BC": batch_norm.BC}
NORM_PASSES = {
    "tile_sums": IMAGE,
    "tile_gradients": {**IMAGE, "RELU": True},
    "affine": {"BC": batch_norm.BC},
    "normalised": {**IMAGE, "RELU": True},
    "normalised_grad": {**IMAGE, "RELU": True, "BATCH": True, "SCALED": False},
    "joined": {"SUMS": sums.JOINED_TILES, "BC": sums.JOINED_CHANNELS},
    "added": {"LONG": sums.LONG, "SHORT": sums.SHORT},
}


@dataclass(frozen=True)
class Configuration:
    """One kernel as it is compiled: for which GPU, pass, variant, type, block (BO, BC), fusions."""

    arch: int
    kernel: str
    tma: bool
    dtype: str
    block: tuple[int, int]
    fused: bool = False


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a configuration."""

    configuration: Configuration
    tile: Any
    registers: int
    stack: int
    shared: int
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
        return found


def configurations() -> Iterator[Configuration]:
    """Yield every configuration that a launcher can choose."""
    blocks = list(itertools.product(SIZES, SIZES))
    for arch, kernel, tma, dtype, block in itertools.product(
        SHARED_LIMIT, PASSES, (False, True), TYPES, blocks
    ):
        if not tma or (arch >= 90 and dtype != "fp32"):
            yield Configuration(arch, kernel, tma, dtype, block)
            if block in FUSED_BLOCKS:
                yield Configuration(arch, kernel, tma, dtype, block, fused=True)
    for arch, kernel, dtype in itertools.product(SHARED_LIMIT, NORM_PASSES, ("bf16", "fp32")):
        yield Configuration(arch, kernel, False, dtype, (batch_norm.BC, batch_norm.BC))


def compile_one(configuration: Configuration) -> Compiled:
    """Compile a configuration and read the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants, descriptors, tile = _arguments(configuration)
    names = kernel.arg_names
    element = TYPES[configuration.dtype][0]
    kinds = {n: _kind(n, constants, descriptors, element) for n in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if kinds[n].startswith("*") or (kinds[n] == "i32" and re.fullmatch(STRIDES, n))
    }
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
    return Compiled(configuration, tile, registers, stack, compiled.metadata.shared, counts)


def source_hash() -> str:
    """Return a hash of the kernels and the tiles, to see that a written table is current."""
    folder = Path(sparse_kernels.__file__).parent / "triton"
    files = sorted([*folder.glob("*_kernels.py"), folder / "tiles.py"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _arguments(c: Configuration) -> tuple[Any, dict[str, Any], dict[str, list[int]], Any]:
    from sparse_kernels.triton import (
        batch_norm_kernels,
        gather_kernels,
        sums_kernels,
        weight_grad_kernels,
    )

    if c.kernel in NORM_PASSES:
        constants = NORM_PASSES[c.kernel]
        module = sums_kernels if hasattr(sums_kernels, c.kernel) else batch_norm_kernels
        tile = (
            Tile(batch_norm.BM, 0, batch_norm.WARPS, 1) if "BM" in constants else Tile(0, 0, 4, 1)
        )
        return getattr(module, c.kernel), constants, {}, tile
    (bo, bc), (_, itemsize, precision) = c.block, TYPES[c.dtype]
    exact = c.dtype == "fp32"
    input_kind = "affine_relu" if c.fused else "plain"
    common = {"GEOMETRY": GEOMETRY, "INPUT": input_kind, "PRECISION": precision}
    if not c.fused:
        common |= {"scale": None, "shift": None}
    if c.kernel == "weight gradient":
        tile = weight_grad_tile(c.arch, itemsize, exact, bc, bo, c.fused, c.tma)
        constants = {**common, "BM": tile.bm, "BC": bc, "BO": bo}
        if c.tma:
            boxes = {"x": [tile.bm, bc], "dy": [tile.bm, bo]}
            return weight_grad_kernels.weight_grad_tma, constants, boxes, tile
        constants |= {"HWNC": False, "RAGGED": False, "TILE_C": bc, "TILE_O": bo}
        return weight_grad_kernels.weight_grad_pointers, constants, {}, tile
    transposed = c.kernel == "input gradient"
    reduce, written = (bo, bc) if transposed else (bc, bo)
    tile = gather_tile(c.arch, itemsize, exact, reduce, written, c.fused, c.tma)
    constants = {
        **common,
        "TRANSPOSED": transposed,
        "BM": tile.bm,
        "BK": tile.bk,
        "BLOCK_RED": reduce,
        "BLOCK_DST": written,
        **_unused(c),
    }
    if c.tma:
        weights = [written, tile.bk] if transposed else [tile.bk, written]
        boxes = {"src": [tile.bm, tile.bk], "values": weights, "dst": [tile.bm, written]}
        boxes["x"] = boxes["residual"] = boxes["dst"]
        return gather_kernels.gather_tma, constants, boxes, tile
    constants |= {"HWNC": False, "RAGGED": False, "TILE_DST": power_of_two(written)}
    return gather_kernels.gather_pointers, constants, {}, tile


def _unused(c: Configuration) -> dict[str, None]:
    """Return the tensors that a gather pass is not given."""
    transposed = c.kernel == "input gradient"
    names = ["bias"] if transposed else []
    names += [] if transposed and c.fused else ["x"]
    return dict.fromkeys(names if c.fused else [*names, "residual", "partial"])


def _kind(
    name: str, constants: dict[str, Any], descriptors: dict[str, list[int]], element: str
) -> str:
    if name in constants:
        return "constexpr"
    if name in descriptors:
        return f"tensordesc<{element}[{','.join(map(str, descriptors[name]))}]>"
    if name in IMAGES:
        return f"*{element}"
    if name in VECTORS:
        return "*fp32"
    if name in ("eps", "momentum"):
        return "fp32"
    if name == "batches":
        return "*i64"
    lists = ("start", "slot", "reduce", "tap_h", "tap_w", "out_block", "in_block")
    return "*i32" if name in lists else "i32"


def _row(found: Compiled) -> list[str]:
    c, tile = found.configuration, found.tile
    counts = " ".join(f"{name} {count}" for name, count in found.instructions.items() if count)
    variant = ("tma" if c.tma else "pointers") + " fused" * c.fused
    block = f"{c.block[0]}x{c.block[1]}"
    numbers = (tile.bm, tile.bk, tile.warps, tile.stages, found.registers, found.shared)
    return [f"sm_{c.arch}", c.kernel, variant, c.dtype, block, *map(str, numbers), counts]


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
