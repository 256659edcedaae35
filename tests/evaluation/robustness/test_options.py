"""The flags of an evaluation: what they mean, and what is refused."""

import argparse
from pathlib import Path

import pytest

from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.options import Options, add_flags, read_options


def read(*arguments):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_options(parser.parse_args(arguments))


@pytest.fixture
def with_matplotlib(monkeypatch):
    """Let matplotlib be found, installed or not."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_without_flags_only_the_test_split():
    assert read() == Options(compare=True)
    assert read("--no-compare") == Options()


def test_all_flags(tmp_path, with_matplotlib):
    found = read(
        *("--corruptions", "--severities", "5,1,1", "--ood", "noise", "--ood", "svhn"),
        *("--attack", "pgd,fgsm", "--epsilon", "8/255", "--attack-steps", "3"),
        *("--attack-images", "7", "--out", str(tmp_path / "a.json"), "--plots", str(tmp_path)),
    )
    assert found == Options(
        compare=True,
        severities=(1, 5),
        foreign=("noise", "svhn"),
        attacks=("pgd", "fgsm"),
        epsilon=8 / 255,
        attack_steps=3,
        attack_images=7,
        out=tmp_path / "a.json",
        plots=tmp_path,
    )


def test_defaults_of_corruptions_and_attacks():
    assert read("--corruptions").severities == (1, 2, 3, 4, 5)
    assert read("--attack", "fgsm", "--epsilon", "0.03").epsilon == 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruptions", "--severities", "6"], "--severities lie between 1 and 5, found 6"),
        (["--corruptions", "--severities", "0"], "--severities takes whole numbers from 1, found"),
        (["--corruptions", "--severities", "1,"], "--severities takes whole numbers from 1, found"),
        (["--severities", "1"], "--severities means nothing without --corruptions"),
        (["--attack", "fsgm"], "unknown attack 'fsgm'; did you mean 'fgsm'?"),
        (["--attack", "zoo"], "unknown attack 'zoo'; choose from fgsm, pgd"),
        (["--attack", ""], "unknown attack ''; choose from fgsm, pgd"),
        (["--attack", "fgsm", "--epsilon", "0"], "--epsilon must be above 0 and at most 1"),
        (["--attack", "fgsm", "--epsilon=-1/255"], "--epsilon must be above 0 and at most 1"),
        (["--attack", "fgsm", "--epsilon", "8"], "--epsilon must be above 0 and at most 1"),
        (["--attack", "fgsm", "--epsilon", "nan"], "--epsilon takes a number such as 8/255"),
        (["--attack", "fgsm", "--epsilon", "8/0"], "--epsilon takes a number such as 8/255"),
        (["--epsilon", "8/255"], "--epsilon means nothing without --attack"),
        (["--attack-steps", "3"], "--attack-steps means nothing without --attack"),
        (["--attack", "pgd", "--attack-steps", "0"], "--attack-steps takes whole numbers from 1"),
        (["--attack", "pgd", "--attack-images", "x"], "--attack-images takes whole numbers from 1"),
        (["--out", "."], "output file '.' exists; choose another --out, or remove it"),
        (["--out", "none/a.json"], "folder 'none' of --out does not exist; make it first"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        read(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plots_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"--plots needs matplotlib, which is not installed: pip inst"
    ):
        read("--plots", str(tmp_path / "figures"))


def test_plots_keep_what_is_there(with_matplotlib, tmp_path):
    Path(tmp_path, "figure.png").touch()
    with pytest.raises(InputError, match="of --plots exists and is not empty; choose another"):
        read("--plots", str(tmp_path))
