"""Settings from files: what is refused, and what older files hold."""

import json

import pytest

from sparse_engine.config.flags import parse_flags
from sparse_engine.config.values import GONE, check_values, read_config_file
from sparse_engine.errors import EARLIER_NAMES_GO_IN, InputError, nearest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown setting 'epoch'; did you mean 'epochs'?"),
        ('{"zzzzzz": 3}', "unknown setting 'zzzzzz'"),
        ('{"epochs": "3"}', "epochs should be of type int, found '3'"),
        ('{"epochs": 3.0}', "epochs should be of type int, found 3.0"),
        ('{"epochs": true}', "epochs should be of type int, found True"),
        ('{"lr": "0.1"}', "lr should be of type float, found '0.1'"),
        ('{"lr": false}', "lr should be of type float, found False"),
        ('{"lr": [0.1]}', "lr should be of type float, found [0.1]"),
        ('{"lr": NaN}', "lr must be a finite number, found nan"),
        ('{"lr": -Infinity}', "lr must be a finite number, found -inf"),
        ('{"lr": 1e999}', "lr must be a finite number, found inf"),
        ('{"lr": 1' + "0" * 400 + "}", "lr must be a finite number"),
        ('{"method": 3}', "method should be of type str, found 3"),
        ('{"dry_run": 1}', "dry_run should be of type bool, found 1"),
        ('{"device": "gpu"}', "device should be one of auto, cpu, cuda, found 'gpu'"),
        ('{"seed": null}', "seed may not be null"),
        ('{"method": null}', "method may not be null"),
        ("[1]", "must hold one JSON object, found list"),
        ("null", "must hold one JSON object, found NoneType"),
        ("{'lr': 1}", "is not JSON: "),
        ("", "is not JSON: "),
        ("[" * 200_000, "is not JSON: "),
        ('{"lr": ' + "1" * 5000 + "}", "is not JSON: "),
    ],
)
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_config_file(str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"config file '.*none.json' does not exist"):
        read_config_file(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="cannot be read"):
        read_config_file(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_config_file(str(tmp_path / "binary"))


def test_null_means_as_the_recipe_says():
    assert check_values({"lr": None, "data_dir": None}, "file") == {"lr": None, "data_dir": None}


def test_nearest():
    assert nearest("epoch", ["epochs", "lr"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == ""


def test_runs_of_before_are_read_unless_they_used_what_is_gone(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"method": "rigl", **GONE}))
    assert read_config_file(str(path)) == {"method": "rigl"}
    for name, value in (("ablation", 0.3), ("score", "l2"), ("fan_in", "constant")):
        path.write_text(json.dumps({"method": "rigl", name: value}))
        message = f"config file '{path}': setting '{name}' was removed, found {json.dumps(value)}: "
        with pytest.raises(InputError, match=f"{message}leave it out"):
            read_config_file(str(path))


@pytest.mark.parametrize("name", GONE)
def test_flags_that_are_gone(name):
    with pytest.raises(InputError, match=f"^flag '--{name}' was removed; leave it out$"):
        parse_flags([f"--{name}=l2"], "")


def test_settings_by_their_earlier_names(tmp_path, caplog):
    path = tmp_path / "config.json"
    path.write_text('{"regroup": true}')
    assert read_config_file(str(path)) == {"permute_channels": True}
    assert not caplog.records  # files of earlier versions are read for good
    assert parse_flags(["--regroup"], "") == {"permute_channels": True}
    assert parse_flags(["--backend=gemm"], "") == {"backend": "native"}
    goes = f"now; the earlier name goes in {EARLIER_NAMES_GO_IN}"
    assert [record.message for record in caplog.records] == [
        f"flags: --regroup is called --permute-channels {goes}",
        f"flags: backend 'gemm' is called 'native' {goes}",
    ]
    with pytest.raises(InputError, match="regroup is the earlier name of permute_channels; leave"):
        check_values({"regroup": True, "permute_channels": False}, "file")


def test_a_paper_beside_the_settings_is_for_people(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"paper": {"accuracy": 0.963}, "method": "edst"}))
    assert read_config_file(str(path)) == {"method": "edst"}


@pytest.mark.parametrize("name", ["\0", "a" * 256, "a/" * 2001, "\ud800"])
def test_what_no_file_can_be_called_is_refused(name):
    with pytest.raises(InputError, match=r"out\.json: .* cannot be the name of anything"):
        check_values({"data_dir": name}, "out.json")
