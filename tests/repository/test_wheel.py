"""The wheel that users install holds every package: it is built, unpacked and imported from."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from wheels import build_wheel

import sparse_engine

ROOT = Path(__file__).parents[2]
SOURCES = {"sparse_engine": ROOT, "sparse_kernels": ROOT / "kernels"}
IMPORTS = """
import importlib, pkgutil, sparse_engine, sparse_kernels
for package in (sparse_engine, sparse_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(sparse_engine.__file__, sparse_kernels.__file__)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Return the folder that a wheel of this checkout is unpacked in."""
    folder = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(build_wheel(folder)).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_it_holds_every_file(unpacked):
    for package, source in SOURCES.items():
        files = {
            path.relative_to(source)
            for path in (source / package).rglob("*")
            if path.suffix in (".py", ".typed", ".cpp", ".h", ".json", ".csv")
        }
        assert files == {
            path.relative_to(unpacked) for path in (unpacked / package).rglob("*") if path.is_file()
        }


def test_it_has_the_version_of_the_source(unpacked):
    (facts,) = unpacked.glob("*.dist-info/METADATA")
    assert f"\nVersion: {sparse_engine.__version__}\n" in facts.read_text(encoding="utf-8")


def run_from(unpacked, folder, *arguments):
    """Return what Python prints in a folder where only the wheel's packages are found."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_module_can_be_imported_from_it(unpacked, tmp_path):
    files = run_from(unpacked, tmp_path, "-c", IMPORTS).split()
    assert files == [str(unpacked / p / "__init__.py") for p in SOURCES]


def test_it_has_the_command_and_the_papers_configurations(unpacked, tmp_path):
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "sparse-engine = sparse_engine.__main__:main" in entry_points.read_text().splitlines()
    name = "freetickets/edst-m3-wrn28-10-cifar10"
    command = ("-m", "sparse_engine", "train", "--config", name, "--print-config")
    assert json.loads(run_from(unpacked, tmp_path, *command))["model"] == "wrn28-10"
