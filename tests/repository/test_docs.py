"""`make docs` finds every public name, with something said of it."""

import importlib.util
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("docs_api", ROOT / "docs" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_names(module):
    """Return functions and classes that a module's page shows."""
    names = getattr(module, "__all__", None) or [
        name
        for name, found in vars(module).items()
        if not name.startswith("_") and getattr(found, "__module__", None) == module.__name__
    ]
    return [n for n in names if inspect.isclass(getattr(module, n)) or callable(getattr(module, n))]


def test_every_public_name_says_what_it_is(api):
    assert {"sparse_engine", "sparse_kernels", "sparse_engine.runs.exported"} <= set(api.MODULES)
    for module in map(importlib.import_module, api.MODULES):
        assert module.__doc__
        names = public_names(module)
        assert names, module.__name__
        for name in names:
            assert vars(module)[name].__doc__, f"{module.__name__}.{name}"


def test_the_pages(api, tmp_path, capsys):
    pytest.importorskip("pdoc", reason="pdoc is not installed (extra 'test')")
    api.main(tmp_path)
    assert f"wrote {tmp_path / 'index.html'}" in capsys.readouterr().out
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in api.MODULES:
        page = f"{name.replace('.', '/')}.html"
        assert f'href="{page}"' in index
        text = (tmp_path / page).read_text(encoding="utf-8")
        for public in public_names(importlib.import_module(name)):
            assert f'id="{public}"' in text, f"{name}.{public}"
