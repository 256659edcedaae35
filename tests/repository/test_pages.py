"""What README and the pages tell of exists: flags, commands, links, files and names."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_engine.__main__ import run
from sparse_engine.commands.configs import names_having
from sparse_engine.commands.plan import new_parser
from sparse_engine.config.config import FIELDS, Config
from sparse_engine.config.flags import parse_flags
from sparse_engine.config.values import ARGUMENTS, EARLIER, GONE, read_config_file
from sparse_engine.errors import InputError
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.epoch_rows import BLOCK_COLUMNS, COLUMNS
from sparse_engine.train import main as train

ROOT = Path(__file__).parents[2]
WRITTEN_BY_HAND = ("docs", "bench", "examples", "tests")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *sorted(ROOT.glob("*.md")),
        *(page for room in WRITTEN_BY_HAND for page in sorted((ROOT / room).rglob("*.md"))),
    )
}
METHODS_PAGE = PAGES["docs/methods.md"]
# Where a path that a page names may begin.
STARTS = (
    *("", "sparse_engine", "kernels/sparse_kernels", "tests", "tests/helpers", "bench"),
    *("bench/studies", "sparse_engine/configs"),
)
# What runs leave behind, and what commands in the pages write.
WRITTEN = re.compile(
    r"(config|data|metrics|kernels|picks|edst|both|trainer_state)\.json|(metrics|blocks)\.csv|.*\.(pt|pt2|npz|safetensors|png)"
)
FLAGS_OF_OTHERS = {"--nproc-per-node", "--help", "--help-all", "--version"}
# Of files that another version wrote: nothing need be there any more.
FIXTURES = {page for page in PAGES if page.startswith("tests/fixtures/")}
OWN_NAMES = re.compile(r"`(sparse_(?:engine|kernels)(?:\.\w+)+)")
EARLIER_MODULES = {path.stem for path in (ROOT / "sparse_engine/earlier_names").glob("[a-z]*.py")}
# Read by the packages' code.
VARIABLES = {
    name
    for package in ("sparse_engine", "kernels")
    for path in (ROOT / package).rglob("*.py")
    for name in re.findall(r'"(SPARSE_ENGINE_[A-Z]+)"', path.read_text(encoding="utf-8"))
}


def flags_of_bench():
    """Return the flags that the pages give to each module of bench, which may be none."""
    flags = {}
    for text in PAGES.values():
        for command in re.findall(r"python -m (bench[\w.]*[^`\n]*)", text.replace("\\\n", " ")):
            module, _, rest = command.partition(" ")
            told = re.findall(r"(?<!\S)--[a-z-]+", rest.partition("  #")[0])
            flags.setdefault(module.rstrip("."), set()).update(told)
    return flags


FLAGS_OF_BENCH = {module: flags for module, flags in sorted(flags_of_bench().items()) if flags}


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    settings = {*FIELDS, *ARGUMENTS, *EARLIER, *(GONE if page == "CHANGELOG.md" else ())}
    known = {f"--{name.replace('_', '-')}" for name in settings} | FLAGS_OF_OTHERS
    for folder in ("sparse_engine", "bench", "docs", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            for names in re.findall(r'add_argument\(\s*((?:"--[a-z-]+",?\s*)+)', source):
                known |= set(re.findall(r"--[a-z-]+", names))
            for table in re.findall(r"^FLAGS = \{(.*?)\}", source, re.DOTALL | re.MULTILINE):
                names = re.findall(r'"(\w+)":', table)
                known |= {f"--{name.replace('_', '-')}" for name in names}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", PAGES[page]))
    assert told <= known, told - known


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


def anchors(text):
    """Return the names that GitHub gives the headings of a page; comments of code are none."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"docs/architecture.md"} - FIXTURES))
def test_files_exist(page):
    for name in re.findall(r"`([\w./-]+\.[a-z]\w*)`", PAGES[page]):
        if not re.search(r"\.(py|md|json|csv|toml|png)$", name) or WRITTEN.fullmatch(name):
            continue
        beside = (ROOT / page).parent / name
        assert beside.exists() or any((ROOT / start / name).exists() for start in STARTS), name


@pytest.mark.parametrize("page", [page for page in PAGES if "::" in PAGES[page]])
def test_tests_exist(page):
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGES[page]):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_are_run_exist(page):
    for name in re.findall(r"python -m ((?:sparse_engine|bench)(?:\.\w+)*)", PAGES[page]):
        found = importlib.util.find_spec(name)
        assert found is not None, name
        if found.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{name}.__main__"), name


def commands(page):
    """Return name and arguments of each of our commands in a page's indented lines."""
    text = PAGES[page].replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:\w+=\w+ )*sparse-engine (\w+)(.*)$", text, re.MULTILINE)
    return [(name, shlex.split(re.sub(r"[\[\]]", "", rest), comments=True)) for name, rest in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run is that they would read
    for name, arguments in commands(page):
        if name == "train":
            flags = parse_flags(arguments, "")
            file = read_config_file(flags["config"]) if "config" in flags else {}
            if "resume" not in flags:
                resolve(Config(**{**file, **flags}))
            continue
        if name == "configs":
            assert names_having(arguments)
            continue
        if name == "plan":
            assert new_parser().parse_strictly(arguments).seconds > 0
            continue
        # All that is wrong is that there is no such run, or no package to draw with.
        with pytest.raises(InputError, match=r"is not a run folder|needs matplotlib"):
            run([name, *arguments])


def test_every_method_has_its_command():
    told = set(re.findall(r"--method ([\w-]+)", METHODS_PAGE))
    assert told == set(METHODS)
    assert set(re.findall(r"^\| `([\w-]+)` \|", METHODS_PAGE, re.MULTILINE)) == set(METHODS)


def test_what_a_run_leaves_is_told(capsys):
    page = PAGES["docs/runs.md"]
    train(["--dry-run", "--model", "mlp", "--device", "cpu"])
    fields = {*json.loads(capsys.readouterr().out.splitlines()[-1]), "skipped_steps", "processes"}
    assert {
        name for name in {*fields, *COLUMNS, *BLOCK_COLUMNS} if f"`{name}`" not in page
    } == set()


def test_sources_are_named_where_they_are_used():
    for row in re.findall(r"^\| (?!what|---)(.*) \|$", PAGES["docs/sources.md"], re.MULTILINE):
        what, source, rooms = row.split(" | ") if row.count(" | ") == 2 else (row, "", "")
        author = re.match(r"[A-Z][\w-]+", source)
        for room in re.findall(r"`([^`]*)`", rooms):
            code = (
                path.read_text(encoding="utf-8")
                for path in (ROOT / "sparse_engine" / room).rglob("*.py")
            )
            assert author[0] in "".join(code), what


@pytest.mark.parametrize("page", [page for page in PAGES if OWN_NAMES.search(PAGES[page])])
def test_names_exist(page):
    for name in set(OWN_NAMES.findall(PAGES[page])):
        package, *parts = name.split(".")
        found = importlib.import_module(package)
        if parts[0] in EARLIER_MODULES | {"Together", "integrations"}:
            continue  # these warn (test_lazy_import.py), those need other people's packages
        for end, part in enumerate(parts, 2):
            if not hasattr(found, part):
                importlib.import_module(".".join([package, *parts][:end]))
            found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES)
def test_variables_and_targets_exist(page):
    assert set(re.findall(r"SPARSE_ENGINE_[A-Z]+", PAGES[page])) <= VARIABLES
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", PAGES[page], re.MULTILINE):
        assert f"\n{target}: " in makefile, target


@pytest.mark.slow
@pytest.mark.parametrize("module", FLAGS_OF_BENCH)
def test_flags_of_a_benchmark_are_its_own(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for flag in FLAGS_OF_BENCH[module]:
        assert re.search(rf"{flag}\b(?!-)", done.stdout), flag


def test_no_page_is_left_alone():
    linked = {
        str(((ROOT / page).parent / target.partition("#")[0]).resolve().relative_to(ROOT))
        for page, text in PAGES.items()
        for target in re.findall(r"\]\(([^)\s:#][^)\s:]*)\)", text)
    }
    assert set(PAGES) - {"README.md"} - FIXTURES <= linked
