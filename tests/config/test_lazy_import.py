"""The package's names are imported when first used."""

import subprocess
import sys

import pytest

import sparse_engine

HEAVY = ("torch", "numpy", "torchvision", "sklearn", "tqdm")


def heavy_modules_after(statement: str) -> str:
    """Return which heavy modules a fresh interpreter has after a statement."""
    code = f"{statement}; import sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import sparse_engine; dir(sparse_engine); sparse_engine.__version__",
        "from sparse_engine.config import config, flags; from sparse_engine.methods import resolve",
        "from sparse_engine.methods import phase, registry; import sparse_engine.layers.blocks",
    ],
)
def test_imports_no_torch_and_no_numpy(statement):
    assert heavy_modules_after(statement) == ""


def test_every_public_name_resolves():
    for name in sparse_engine.__all__:
        assert getattr(sparse_engine, name).__name__ == name
    assert sorted(sparse_engine.__all__) == sparse_engine.__all__


def test_dir_has_the_public_names():
    assert {*sparse_engine.__all__, "__version__"} <= set(dir(sparse_engine))
    assert len(dir(sparse_engine)) == len(set(dir(sparse_engine)))


def test_an_unknown_attribute_is_an_error():
    with pytest.raises(AttributeError, match="module 'sparse_engine' has no attribute 'Sparsify'"):
        sparse_engine.Sparsify  # noqa: B018
    assert not hasattr(sparse_engine, "_missing")
