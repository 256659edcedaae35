"""What README and the pages tell of exists: flags, commands, links, files and names."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

import sparse_engine
from sparse_engine.__main__ import run
from sparse_engine.commands.configs import names_having
from sparse_engine.config.config import FIELDS, Config
from sparse_engine.config.flags import parse_flags
from sparse_engine.config.values import ARGUMENTS, read_config_file
from sparse_engine.errors import InputError
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.epoch_rows import COLUMNS
from sparse_engine.train import main as train

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
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
    r"(config|data|metrics|kernels|picks|edst|both|trainer_state)\.json|metrics\.csv|.*\.(pt|pt2|npz|safetensors|png)"
)
FLAGS_OF_OTHERS = {"--nproc-per-node", "--help", "--help-all", "--version"}


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    names = (*FIELDS, *ARGUMENTS)
    known = {f"--{name.replace('_', '-')}" for name in names} | FLAGS_OF_OTHERS
    for folder in ("sparse_engine", "bench", "docs", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            known |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source))
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
    """Return the names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"docs/architecture.md"}))
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
def test_commands_are_right(page, monkeypatch):
    monkeypatch.chdir(ROOT)
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
    assert {name for name in {*fields, *COLUMNS} if f"`{name}`" not in page} == set()


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


def test_programs_import_what_exists():
    for page, text in PAGES.items():
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(code, page, "exec")
            for names in re.findall(r"^from sparse_engine import (.*)$", code, re.MULTILINE):
                told = set(re.findall(r"\w+", names))
                assert told <= set(sparse_engine.__all__), page


def test_no_page_is_left_alone():
    linked = {
        str(((ROOT / page).parent / target.partition("#")[0]).resolve().relative_to(ROOT))
        for page, text in PAGES.items()
        for target in re.findall(r"\]\(([^)\s:#][^)\s:]*)\)", text)
    }
    assert set(PAGES) - {"README.md"} <= linked
