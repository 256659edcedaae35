"""A study's file is checked before any run, and every run has its place."""

import pytest
from study_files import DIGITS, study_file

from bench.study.grid import Data, read_study
from sparse_engine.errors import InputError


def test_axes_are_crossed_with_each_other_and_with_variants(tmp_path):
    grid = {
        "settings": {"method": "rigl", "sparsity": [0.8, 0.9]},
        "variants": {"plain": {}, "fast": {"lr": 0.2}},
        "seeds": [3, 5],
        "against": "plain",
    }
    study = read_study(
        study_file(tmp_path, settings={"model": "mlp", "epochs": 2}, grids={"g": grid})
    )
    runs = study.runs()
    assert [(r.seed, *(v for _, v in r.point)) for r in runs[:4]] == [
        (3, 0.8, "plain"), (3, 0.8, "fast"), (3, 0.9, "plain"), (3, 0.9, "fast"),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == 8
    assert [run.settings.get("lr") for run in runs[:2]] == [None, 0.2]


def test_a_run_of_two_grids_is_made_once(tmp_path):
    grids = {
        **DIGITS["grids"],
        "again": {"settings": {"method": "set", "block": "8x8"}, "seeds": 1},
    }
    study = read_study(study_file(tmp_path, grids=grids))
    assert len(study.runs()) == 4
    assert study.grids[1].runs[0].key == study.grids[0].runs[0].key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {}}, "unknown name 'grid'; did you mean 'grids'"),
        ({"data": {"dataset": "digits", "pixels": 0}}, "pixels should be a int, found 0"),
        ({"settings": {"model": "mlp"}}, "say model and epochs"),
        ({"settings": {"model": "mlp", "epochs": 1, "seed": 1}}, "'seed' is set by the study"),
        ({"settings": {"model": "mlp", "epochs": 1, "blocks": "8x8"}}, "unknown setting 'blocks'"),
        ({"grids": {"g": {"settings": {"method": "sett"}, "seeds": 1}}}, "unknown method 'sett'"),
        ({"grids": {"g": {"settings": {"method": "set"}}}}, "'seeds' is missing"),
        ({"grids": {"g": {"settings": {"method": "set"}, "seeds": []}}}, "seeds should be"),
        (
            {"grids": {"g": {"settings": {"method": "set"}, "seeds": 1, "against": {"lr": 1}}}},
            "'lr', which is no axis",
        ),
        (
            {"grids": {"g": {"settings": {"method": "dense", "sparsity": [0.5]}, "seeds": 1}}},
            "grid 'g', sparsity 0.5: method 'dense' has no sparsity",
        ),
    ],
)  # fmt: skip
def test_what_a_file_says_wrong_is_told_before_any_run(tmp_path, changes, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        read_study(study_file(tmp_path, **changes))


def test_a_part_of_a_data_set_has_a_name_of_its_own():
    assert Data("cifar10", 16, 100).name == "cifar10-16px-100"
    assert Data("cifar10").name == "cifar10"
    assert [Data("cifar10").whole, Data("cifar10", test=5).whole] == [True, False]
