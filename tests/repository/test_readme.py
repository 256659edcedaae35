"""README's example runs as printed, and its flags exist."""

import re
from pathlib import Path

from sparse_engine.config.config import FIELDS
from sparse_engine.config.values import EARLIER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "SparseConv2d" in printed
    assert "1 topology updated" in printed
    assert (tmp_path / "resnet18.pt").is_file()


def test_every_flag_that_is_told_of_exists():
    known = {f"--{name.replace('_', '-')}" for name in (*FIELDS, *EARLIER)}
    for folder in ("sparse_engine", "bench", "docs", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            known |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source))
    known |= {"--nproc-per-node", "--help"}
    for name in ("README.md", "docs/training.md", "docs/blocks.md"):
        told = flags_of((ROOT / name).read_text(encoding="utf-8"))
        assert told <= known, (name, told - known)


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))
