"""The map of the code says what the modules say."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_map_is_current(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import architecture

    found = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert found == architecture.page(), "write it anew: python docs/architecture.py"
    assert ": \n" not in found, "a module without a docstring"
