"""`~` and `~user` in whatever names a path."""

import json
import os
from pathlib import Path

import pytest

from sparse_engine import evaluate, export
from sparse_engine.config.config import Config
from sparse_engine.config.flags import parse_flags
from sparse_engine.config.values import read_config_file
from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.paths import expanded
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.runs.tickets import tickets_of
from sparse_kernels.measurements import cache_path

PATHS = {"out": "~/a b", "data_dir": "~", "teacher": "~root/t", "dataset": "imagefolder:~/i"}


@pytest.fixture
def home(own_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    assert not list(tmp_path.rglob("~*"))


def test_flags_and_files(home):
    root = os.path.expanduser("~root")
    wanted = {
        "out": f"{home}/a b",
        "data_dir": str(home),
        "teacher": f"{root}/t",
        "dataset": f"imagefolder:{home}/i",
    }
    flags = [f"--{name.replace('_', '-')}={text}" for name, text in PATHS.items()]
    assert parse_flags(flags, "") == wanted
    Path("c.json").write_text(json.dumps(PATHS))
    assert read_config_file("c.json") == wanted
    for path in ("a/~", "./~", "/x:y/~b", "imagefolder:a~b"):
        assert expanded(path) == path


def test_commands_and_functions(home, monkeypatch):
    folder = RunFolder.create(resolve(Config(out="~/run", method="static")))
    assert folder.path == home / "run"
    folder.__exit__()
    assert RunFolder.existing("~/run").path == home / "run"
    with pytest.raises(InputError, match=f"'{home}/run' has no tickets"):
        tickets_of("~/run")
    with pytest.raises(InputError, match=f"'{home}/run' has no tickets"):
        export.main(["~/run", "--format", "dense", "--out", "~/x.pt"])
    with pytest.raises(InputError, match=f"folder '{home}/no' of --out does not exist"):
        evaluate.main(["~/run", "--out", "~/no/x.json"])
    with pytest.raises(InputError, match=f"^{home}/i has no folder 'train'"):
        load_dataset("imagefolder:~/i", None)
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", "~/cache")
    assert cache_path("kind", "cpu").parent == home / "cache"
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", "~nobody-9/cache")
    assert "~" not in str(cache_path("kind", "cpu"))


@pytest.mark.parametrize("flag", ["--out", "--data-dir", "--resume", "--config"])
def test_no_such_home(flag):
    with pytest.raises(InputError, match=r"there is no home ~nobody-9; .* is ./~nobody-9$"):
        parse_flags([flag, "~nobody-9/x"], "")
