"""What compiled code says about itself, read by the disassembler that comes with Triton."""

import re
import subprocess
import tempfile
from pathlib import Path


def resources(cubin: bytes) -> tuple[int, int]:
    """Return registers a thread, and bytes of stack, to which a kernel spills."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _read(cubin, "-res-usage"))
    registers, stack = map(int, found.groups())
    return registers, stack


def disassembled(cubin: bytes) -> str:
    """Return the instructions as text."""
    return _read(cubin, "-sass")


def _read(cubin: bytes, flag: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, flag, file.name], capture_output=True, text=True).stdout
