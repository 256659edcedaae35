"""README's example runs as printed, and its file tree names every module."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "SparseConv2d" in printed
    assert "1 topology updated" in printed
    assert (tmp_path / "resnet18.pt").is_file()


def test_the_file_tree_names_every_module():
    tree = README.split("## Files")[1].split("## Limits")[0]
    for folder in (ROOT / "kernels" / "sparse_kernels", ROOT / "sparse_engine"):
        for path in folder.glob("*.py"):
            assert path.name in tree or path.name == "__init__.py", path
