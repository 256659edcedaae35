"""What a type checker sees of the two packages: both are typed, and nothing is left out."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import sparse_engine
import sparse_kernels
from sparse_engine.config.config import FIELDS
from sparse_engine.device import DTYPES
from sparse_engine.sparsity.distribution import BY_NAME, DISTRIBUTIONS
from sparse_engine.sparsity.rules import RULES
from sparse_engine.sparsity.update_schedule import UPDATE_RULES
from sparse_engine.training.group_topology import GroupRule
from sparse_kernels.dispatch.backend import BACKENDS
from sparse_kernels.layout import TAPS

HERE = Path(__file__).parent
# A generic without its arguments is `partially unknown` to pyright's strict mode.
BARE = re.compile(
    r"\b(dict|list|tuple|set|type|Callable|Iterable|Iterator|Mapping|Sequence|Container)\b(?!\[)"
)


def public_functions():
    for package in (sparse_engine, sparse_kernels):
        for name in package.__all__:
            found = getattr(package, name)
            if not inspect.isclass(found):
                yield f"{package.__name__}.{name}", found
                continue
            for member, value in inspect.getmembers(found):
                function = value.fget if isinstance(value, property) else value
                function = getattr(function, "__func__", function)
                own = getattr(function, "__module__", None) or ""
                written = inspect.isfunction(function) and own.startswith("sparse_")
                if written and (member == "__init__" or not member.startswith("_")):
                    yield f"{package.__name__}.{name}.{member}", function


@pytest.mark.parametrize("package", [sparse_engine, sparse_kernels])
def test_packages_are_marked_as_typed(package):
    assert (Path(package.__file__).parent / "py.typed").is_file()


def test_public_functions_say_what_they_do():
    silent = {name for name, function in public_functions() if not function.__doc__}
    assert silent == {"sparse_engine.ErdosRenyi.__init__"}  # a dataclass says it once


def test_public_functions_are_annotated_in_full():
    functions = dict(public_functions())
    assert "sparse_engine.DynamicSparsity.state_dict" in functions
    assert "sparse_kernels.BlockLayout.mask" in functions
    for name, function in functions.items():
        signature = inspect.signature(function)
        hints = {p.name: p.annotation for p in signature.parameters.values()}
        hints.pop("self", None), hints.pop("cls", None)
        hints["return"] = signature.return_annotation
        for place, hint in hints.items():
            assert hint is not inspect.Signature.empty, f"{name}: {place}"
            words = re.sub(r"Literal\[.*?\]", "Literal", str(hint))
            assert not BARE.search(words), f"{name}: {place}: {hint}"


def test_lazily_imported_names_are_known_to_type_checkers():
    source = Path(sparse_engine.__file__).read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:")[1].split("__version__")[0]
    assert sorted(re.findall(r"\b(\w+)(?=,|$)", block, re.MULTILINE)) == sparse_engine.__all__


def program(name):
    """Return a program beside this file, imported."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_typed_program_uses_every_public_name_and_runs():
    words = set(re.findall(r"\w+", (HERE / "typed_user.py").read_text(encoding="utf-8")))
    page = (HERE.parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    dotted = re.findall(r"^(?:- |\| )`sparse_\w+\.[\w.]+\.(\w+)`", page, re.MULTILINE)
    assert len(dotted) > 30
    assert {*sparse_engine.__all__, *sparse_kernels.__all__, *dotted} <= words
    user = program("typed_user")
    assert [row.split()[0] for row in user.make_and_train()] == ["0", "2", "5"]
    assert user.predict().shape == (4,)
    assert user.look_at_layers()[-1] == 0.5
    assert user.train_members().shape == (2, 4, 4)
    assert len(user.call_kernels()) == 2
    assert user.score(user.torch.full((4, 4), 0.25))["differs"] == 0
    assert user.by_name() == "masked masked"


def test_every_table_has_the_names_of_its_type():
    assert tuple(RULES) == UPDATE_RULES
    assert tuple(BY_NAME) == DISTRIBUTIONS
    assert set(get_args(GroupRule)) < set(UPDATE_RULES)
    assert tuple(DTYPES) == FIELDS["dtype"].metadata["choices"]
    # Written out among the settings, for sparse_kernels imports torch.
    assert FIELDS["taps"].metadata["choices"] == TAPS
    assert FIELDS["backend"].metadata["choices"] == BACKENDS


TYPOS = program("typed_typos").TYPOS


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"'{name}'"):
        TYPOS[name]()


@pytest.mark.slow
def test_a_type_checker_finds_the_typos_and_nothing_else():
    pytest.importorskip("pyright", reason="pyright is not installed (extra 'dev')")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
    if not done.stdout.startswith("{"):  # it is a program of Node, which it may have to fetch
        pytest.skip(f"pyright cannot run here: {done.stderr[-200:]}")
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] > 2
    assert told["generalDiagnostics"] == []
