"""What is missing, too old or there twice is told in one line, before anything goes wrong."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import sparse_engine
from sparse_engine import save_safetensors
from sparse_engine.data.class_folders import list_classes
from sparse_engine.data.readers import read_digits
from sparse_engine.data.torchvision_files import read_splits
from sparse_engine.errors import InputError
from sparse_engine.installed import EXTRAS, OLDEST_TORCH, PROJECTS, check_core, require
from sparse_engine.models.build import build_model
from sparse_engine.sparsity.channel_permutation.search import find_permutation

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LAYER = nn.Linear(4, 4).eval()


def refused(*command, path):
    """Return the exit code of a Python that finds packages in a folder first, and its last line."""
    places = os.pathsep.join(map(str, (path, ROOT / "kernels", ROOT)))
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
        cwd=path,
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 or command[0] == "-c", done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_module_comes_with_its_extra(extra):
    listed = re.search(rf"^{extra} = \[(.*?)\]$", PROJECT, re.DOTALL | re.MULTILINE)[1]
    for module in EXTRAS[extra]:
        assert f'"{PROJECTS.get(module, module)}>=' in listed, module


def test_bounds_are_those_that_pip_knows():
    oldest = ".".join(map(str, OLDEST_TORCH))
    assert f'"torch>={oldest}"' in PROJECT
    kernels = (ROOT / "kernels" / "sparse_kernels" / "__init__.py").read_text(encoding="utf-8")
    assert f"< [{oldest.replace('.', ', ')}]" in kernels
    assert f"torch {oldest} or newer" in kernels
    python = re.search(r'requires-python = ">=3\.(\d+)"', PROJECT)[1]
    assert f"< (3, {python})" in Path(sparse_engine.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("modules", "line"),
    [
        (["tqdm"], 'tqdm, which is not installed: pip install "sparse-engine[train]"'),
        (
            ["PIL", "sklearn"],
            'pillow and scikit-learn, which are not installed: pip install "sparse-engine[train]"',
        ),
        (["onnx"], 'onnx, which is not installed: pip install "sparse-engine[export]"'),
    ],
)
def test_a_missing_package_is_named_with_its_extra(modules, line, monkeypatch):
    require("drawing", "math")  # is there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        require("drawing", *modules)
    assert str(caught.value) == f"drawing needs {line}"


def read_svhn(folder):
    for file in ("train_32x32.mat", "test_32x32.mat"):
        (folder / file).touch()
    read_splits("svhn", str(folder))


def build(folder):
    build_model("torchvision/resnet18", classes=2, channels=3, height=64, width=64)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (
            lambda folder: save_safetensors(LAYER, folder / "x"),
            "writing safetensors files needs safetensors",
        ),
        (read_svhn, "the data set svhn needs torchvision and scipy"),
        (lambda folder: find_permutation(LAYER, {}), "permuting channels needs scipy"),
        (build, "torchvision/resnet18 needs torchvision"),
        (lambda folder: read_digits(), "the data set digits needs scikit-learn"),
        (list_classes, "reading folders of images needs torchvision and pillow"),
    ],
)
def test_what_needs_an_extra_says_so(use, words, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"^{words}, which .*\[train\]"):
        use(tmp_path)


def test_an_old_torch(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('__version__ = "2.10.1+cpu"')
    facts = tmp_path / "torch-2.10.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.1+cpu\n")
    words = "torch 2.11 or newer, found 2.10.1+cpu"
    line = f'sparse_engine needs {words}: pip install --upgrade "torch>=2.11"'
    assert refused("-m", "sparse_engine.train", path=tmp_path) == (2, f"error: {line}")
    code, last = refused("-c", "from sparse_engine import sparsify", path=tmp_path)
    assert (code, last) == (1, f"sparse_engine.errors.InputError: {line}")
    code, last = refused("-c", "import sparse_kernels", path=tmp_path)
    assert (code, last) == (1, f"ImportError: sparse_kernels needs {words}")


def test_an_old_python(tmp_path):
    code = "import sys; sys.version_info = (3, 9, 18); import sparse_engine"
    _, last = refused("-c", code, path=tmp_path)
    assert last.startswith("ImportError: sparse_engine needs Python 3.10 or newer, this is 3.")


def test_kernels_of_another_copy(tmp_path):
    (tmp_path / "sparse_kernels").mkdir()
    (tmp_path / "sparse_kernels" / "__init__.py").touch()
    code, line = refused("-m", "sparse_engine.export", path=tmp_path)
    assert (code, line.count("'")) == (2, 4)
    assert str(tmp_path / "sparse_kernels") in line
    assert f"'{ROOT / 'sparse_engine'}'" in line
    _, last = refused("-c", "from sparse_engine import sparsify", path=tmp_path)
    assert last == f"sparse_engine.errors.InputError: {line.removeprefix('error: ')}"


def test_kernels_of_this_copy_by_another_path(tmp_path, monkeypatch):
    for name, folder in (("sparse_engine", ROOT), ("sparse_kernels", ROOT / "kernels")):
        (tmp_path / name).symlink_to(folder / name)
    code = "import sparse_engine.installed as i; i.check_core(); print(i.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "sparse_engine" / "installed.py"), done.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="there is no sparse_kernels beside"):
        check_core()
