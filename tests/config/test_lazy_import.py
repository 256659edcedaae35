"""The package's names are imported when first used."""

import subprocess
import sys

import pytest

import sparse_engine
from sparse_engine.errors import EARLIER_NAMES_GO_IN
from sparse_engine.installed import EXTRAS

OF_EXTRAS = tuple(module for modules in EXTRAS.values() for module in modules)


def loaded_by(statement: str, *modules: str, after: str = "pass") -> str:
    """Return which of some modules a statement loads in a fresh interpreter."""
    code = f"import sys; {after}; before = set(sys.modules); {statement}"
    return output_of(f"{code}; print(*[m for m in {modules} if m in set(sys.modules) - before])")


def output_of(code: str) -> str:
    """Return what a fresh interpreter prints."""
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
    assert loaded_by(statement, "torch", "numpy", *OF_EXTRAS) == ""


def test_public_names_need_what_torch_needs_alone():
    # The compiler takes seconds to import, and who compiles nothing need not wait for it.
    heavy = (*OF_EXTRAS, "torch._dynamo", "torch._inductor")
    statement = "import sparse_engine; [getattr(sparse_engine, n) for n in sparse_engine.__all__]"
    assert loaded_by(statement, *heavy, after="import torch") == ""


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


def test_earlier_names_go_in_a_release_to_come():
    now, then = (
        tuple(map(int, v.split("."))) for v in (sparse_engine.__version__, EARLIER_NAMES_GO_IN)
    )
    assert now < then, "take the earlier names out: docs/reference.md lists them"


# In fresh interpreters: `sparse_engine.tune` is then the earlier module, not the function.
MODULES = """
import importlib, pathlib, re, warnings
import sparse_engine
from sparse_engine.errors import EARLIER_NAMES_GO_IN
warnings.simplefilter("always")
for path in pathlib.Path(sparse_engine.__file__).with_name("earlier_names").glob("[a-z]*.py"):
    with warnings.catch_warnings(record=True) as told:
        old = importlib.import_module(f"sparse_engine.{path.stem}")
    words = f"{old.__name__} is {old.__doc__[4:-1]} now; the earlier name goes in "
    assert [str(one.message) for one in told] == [words + EARLIER_NAMES_GO_IN], told
    assert told[0].category is DeprecationWarning
    new = importlib.import_module(re.match("Now (.*)[.]", old.__doc__)[1])
    names = getattr(new, "__all__", None) or [n for n in vars(new) if not n.startswith("_")]
    assert all(getattr(old, n) is getattr(new, n) for n in names)
    print(path.stem, end=" ")
"""
PROGRAM = """
import sys, warnings
warnings.simplefilter("always")
warnings.showwarning = lambda _, category, filename, line, *others: print(filename, line, end=" ")
import sparse_engine.together, sparse_engine.tune
from sparse_engine import metrics, tune
from sparse_engine.starts import snip_scores
from sparse_engine.tune import tune as function
assert sparse_engine.together.Together is sparse_engine.Together is sparse_engine.GroupedMembers
assert snip_scores is sparse_engine.snip_scores
assert metrics.accuracy is sparse_engine.evaluation.metrics.accuracy
try:
    tune("a model", None)  # the module is the function, too
except AttributeError as error:
    print(function.__name__, error)
"""


def test_modules_are_found_by_their_earlier_names():
    assert len(output_of(MODULES).split()) == 13
    # Each warning names the line of the program that has to change.
    *lines, last = output_of(PROGRAM).split("<string> ")
    assert [int(line) for line in lines if line] == [5, 5, 6, 7]
    assert last == "9 tune 'str' object has no attribute 'zero_grad'"
