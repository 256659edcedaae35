"""What a type checker sees of the two packages: both are typed, and nothing is left out."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import sparse_engine
import sparse_kernels

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
            assert not BARE.search(str(hint)), f"{name}: {place}: {hint}"


def test_lazily_imported_names_are_known_to_type_checkers():
    source = Path(sparse_engine.__file__).read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:")[1].split("__version__")[0]
    assert sorted(re.findall(r"\b(\w+)(?=,|$)", block, re.MULTILINE)) == sparse_engine.__all__


def test_a_typed_program_uses_every_public_name_and_runs():
    source = Path(__file__).with_name("typed_user.py")
    words = set(re.findall(r"\w+", source.read_text(encoding="utf-8")))
    assert {*sparse_engine.__all__, *sparse_kernels.__all__} <= words
    spec = importlib.util.spec_from_file_location("typed_user", source)
    user = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(user)
    assert [row.split()[0] for row in user.make_and_train()] == ["0", "2", "5"]
    assert user.predict().shape == (4,)
    assert user.look_at_layers()[-1] == 0.5
    assert user.train_members().shape == (2, 4, 4)
    assert len(user.call_kernels()) == 2
