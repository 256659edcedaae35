"""What has to be installed: versions, kernels of this very copy, packages of extras. No torch."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sparse_engine.errors import InputError

OLDEST_TORCH = (2, 11)
KERNELS = "sparse_kernels"
# Which extra of pyproject.toml brings a module.
EXTRAS = {
    "train": ("PIL", "safetensors", "scipy", "sklearn", "torchvision", "tqdm"),
    "plots": ("matplotlib",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "integration": ("lightning", "transformers"),
    "log": ("tensorboard",),
}
# What pip calls a module, where that is not its name.
PROJECTS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def require(what: str, *modules: str) -> None:
    """Raise InputError unless modules are installed; it names the extra that brings them.

    Args:
        what: that needs them, to begin a sentence with.
        modules: of EXTRAS, all of one extra.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(not_installed(what, *missing))


def not_installed(what: str, *modules: str) -> str:
    """Return the line that says what brings modules that are missing, as require."""
    (extra,) = {extra for extra, known in EXTRAS.items() if set(modules) & set(known)}
    *rest, last = (PROJECTS.get(name, name) for name in modules)
    names = f"{', '.join(rest)} and {last}, which are" if rest else f"{last}, which is"
    return f'{what} needs {names} not installed: pip install "sparse-engine[{extra}]"'


def check_core() -> None:
    """Raise InputError if torch is too old, or if the kernels found are not those of this copy."""
    oldest, found = ".".join(map(str, OLDEST_TORCH)), _torch_version()
    remedy = f'pip install --upgrade "torch>={oldest}"'
    if found is None:
        raise InputError(f"sparse_engine needs torch, which is not installed: {remedy}")
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and tuple(map(int, numbers.groups())) < OLDEST_TORCH:
        raise InputError(f"sparse_engine needs torch {oldest} or newer, found {found}: {remedy}")
    _check_kernels()


def _torch_version() -> str | None:
    """Return the version of torch without importing it; None if there is none."""
    if "torch" in sys.modules:
        return sys.modules["torch"].__version__
    if importlib.util.find_spec("torch") is None:
        return None
    from importlib import metadata  # here, for the time it takes

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""  # one that pip knows nothing of: sparse_kernels looks again


def _check_kernels() -> None:
    """Raise InputError unless sparse_kernels comes from where sparse_engine does.

    Both are one distribution; where there are two copies on the path, each may be found in another.
    """
    own, spec = Path(__file__).parent, importlib.util.find_spec(KERNELS)
    if spec is None or spec.origin is None:
        raise InputError(f"there is no {KERNELS} beside '{own}': install sparse-engine again")
    found = Path(spec.origin).parent
    if not any(place.is_dir() and place.samefile(found) for place in _own_kernels(own)):
        raise InputError(
            f"{KERNELS} in '{found}' is of another copy than sparse_engine in '{own}': take one of "
            "the copies off the path (PYTHONPATH, pip uninstall sparse-engine)"
        )


def _own_kernels(own: Path) -> Iterator[Path]:
    """Yield where kernels may lie: beside the package when installed, in kernels/ of a checkout."""
    for package in (own, own.resolve()):
        yield package.with_name(KERNELS)
        yield package.with_name("kernels") / KERNELS
