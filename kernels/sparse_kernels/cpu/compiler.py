"""C++ compilers of this machine: which there are, what tells one from another, what they build."""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SPARSE_ENGINE_CXX"
USUAL = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread")
# The processor that this is, by the machine's name; other compilers and machines: their default.
NATIVE = {
    "x86_64": ("-march=native", "-mprefer-vector-width=512"),
    "aarch64": ("-mcpu=native",),
    "arm64": ("-mcpu=native",),
}
SECONDS = 60  # until a compiler is taken to hang


class CannotCompile(Exception):
    """No compiler, or one that failed; the text is one line for users."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that has shown that it can read C++ with these flags.

    Attributes:
        program: the words it is called by.
        flags: what every call has, those of the user last.
        identity: differs where another compiler, or another processor, would build another file.
    """

    program: tuple[str, ...]
    flags: tuple[str, ...]
    identity: str

    def build(self, sources: Sequence[Path], target: Path) -> None:
        """Compile files side by side and link them to a shared library.

        Args:
            sources: of names that differ.
            target: the library; what is compiled on the way lies beside it.

        Raises:
            CannotCompile: the first complaint of the compiler.
        """
        objects = [target.with_name(f"{source.stem}.o") for source in sources]
        calls = [("-c", str(source), "-o", str(o)) for source, o in zip(sources, objects)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda call: self._call(*call), calls))
        self._call("-shared", "-o", str(target), *map(str, objects))
        if not target.is_file():
            raise CannotCompile(f"{shlex.join(self.program)} wrote no library")

    def _call(self, *arguments: str) -> None:
        _output([*self.program, *self.flags, *arguments])


def compilers() -> Iterator[Compiler]:
    """Yield the compilers to try: what $SPARSE_ENGINE_CXX names alone, else $CXX and the usual.

    Raises:
        CannotCompile: after those that were found, why others were not.
    """
    chosen = os.environ.get(VARIABLE)
    names = [chosen] if chosen else [os.environ.get("CXX", ""), *USUAL]
    missing, seen = [], set()
    for name in names:
        try:
            words = shlex.split(name)
        except ValueError:  # a quotation without an end
            words = [name]
        place = shutil.which(words[0]) if words else None
        known = (place and os.path.realpath(place), *words[1:])
        if place is None or known in seen:
            continue
        seen.add(known)
        try:
            yield _compiler(place, words)
        except CannotCompile as error:
            missing.append(str(error))
    if missing:
        raise CannotCompile("; ".join(missing))
    if chosen and not seen:
        raise CannotCompile(f"there is no compiler '{chosen}', which ${VARIABLE} names")
    if not seen:
        raise CannotCompile(f"there is no C++ compiler ({', '.join(USUAL)}); {_how_to_install()}")


def _compiler(place: str, words: Sequence[str]) -> Compiler:
    """Return a compiler with the first flags it understands; CannotCompile if it has none."""
    # Options that users name come last, where they have the last word.
    options = next((i for i, word in enumerate(words) if i and word.startswith("-")), len(words))
    program, own = (place, *words[1:options]), tuple(words[options:])
    version = _output([*program, "--version"])
    native = NATIVE.get(platform.machine(), ())
    # Clang has no preferred width in old versions, and native no meaning on some machines.
    for target in dict.fromkeys((native, native[:1], ())):
        flags = (*FLAGS, *target, *own)
        try:
            # What the compiler has defined tells what "native" stands for on this processor.
            macros = _output(
                [*program, *flags, "-x", "c++", "-E", "-dM", "-"], "#include <algorithm>"
            )
        except CannotCompile as error:
            failure = error
            continue
        if "__cplusplus" not in macros:
            raise CannotCompile(f"{place} is no C++ compiler")
        parts = (*program, *flags, version, macros, sys.platform, platform.machine())
        return Compiler(program, flags, hashlib.sha256("\0".join(parts).encode()).hexdigest())
    raise failure


def _output(command: Sequence[str], text: str = "") -> str:
    """Return what a command writes; CannotCompile, with its first complaint, if it fails."""
    name = shlex.join(command[:1])
    try:
        done = _run(command, text)
    except subprocess.TimeoutExpired:
        raise CannotCompile(f"{name} had not ended after {SECONDS} seconds") from None
    except OSError as error:
        raise CannotCompile(f"{name} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        complaint = next((line for line in lines if "error" in line.lower()), "".join(lines[:1]))
        raise CannotCompile(f"{name} failed ({done.returncode}): {complaint[:300]}")
    return done.stdout


def _run(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a group of its own: one that hangs is ended with all it has begun."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(text, timeout=SECONDS)
        except BaseException:  # also where the user has pressed Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@functools.cache
def _how_to_install() -> str:
    if sys.platform == "darwin":
        return "xcode-select --install brings one"
    tools = {"apt-get": "g++", "dnf": "gcc-c++", "apk": "g++", "pacman": "gcc", "zypper": "gcc-c++"}
    for tool, package in tools.items():
        if shutil.which(tool):
            command = "add" if tool == "apk" else "-S" if tool == "pacman" else "install"
            return f"{tool} {command} {package} brings one"
    return "install g++ or clang++"
