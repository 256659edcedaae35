"""Settings from flags and files, what a saved configuration gives back, and every bad input."""

import json

import pytest

from sparse_engine.config.config import FIELDS, TRANSIENT, Config
from sparse_engine.config.flags import parse_flags, run_command
from sparse_engine.config.values import GONE, check_values, read_config_file
from sparse_engine.errors import InputError, RunFailure, Stopped, nearest
from sparse_engine.layers.blocks import layer_block, parse_block
from sparse_engine.methods.recipes import RECIPES, recipe_for
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve, warmup_share
from sparse_engine.sparsity.erdos_renyi import ErdosRenyi

NUMBERS = {n: f.metadata["kind"] for n, f in FIELDS.items() if f.metadata["kind"] in (int, float)}
MAY_BE_ZERO = {
    *("seed", "workers", "dropout", "sparsity", "momentum", "weight_decay", "label_smoothing"),
    *("start_sparsity", "downsample_rate", "rewind_point", "input_repetition"),
    *("skip_nonfinite", "erk_power"),
}
CHOICES = {n: f.metadata["choices"] for n, f in FIELDS.items() if "choices" in f.metadata}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def from_flags(*arguments: str) -> Config:
    return Config(**parse_flags(arguments, "description"))


def saved_to(path, config: Config) -> str:
    path.write_text(json.dumps(config.saved()))
    return str(path)


def test_flags_become_typed_settings():
    flags = ["--method", "rigl", "--epochs", "3", "--lr", "1", "--dry-run", "--data-dir", "a b"]
    assert parse_flags(flags, "") == {
        "method": "rigl",
        "epochs": 3,
        "lr": 1.0,
        "dry_run": True,
        "data_dir": "a b",
    }
    assert isinstance(parse_flags(["--lr", "1"], "")["lr"], float)
    assert parse_flags([], "") == {}


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_configuration_starts_the_run_again(method, tmp_path):
    flags = ["--method", method, "--seed", "7", "--lr", "0.05", "--block", "4x4", "--epochs", "9"]
    flags += ["--dropout", "0.1"]
    flags += ["--teacher", "run"] if method == "kd-ticket" else []
    config = resolve(from_flags(*flags, "--out", str(tmp_path / "out"), "--device", "cpu"))
    again = Config(**read_config_file(saved_to(tmp_path / "config.json", config)))
    assert again.saved() == config.saved()
    assert resolve(again) == again
    assert again.out is None
    assert not set(TRANSIENT) & set(config.saved())


def test_flags_win_over_a_file(tmp_path):
    path = saved_to(tmp_path / "c.json", from_flags("--epochs", "5", "--lr", "0.3"))
    flags = parse_flags(["--config", path, "--epochs", "2"], "")
    config = Config(**{**read_config_file(flags["config"]), **flags})
    assert (config.epochs, config.lr) == (2, 0.3)


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(["--help"], "What it does.")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "What it does." in shown
    assert all(flag(name) in shown for name in FIELDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsty", "0.5"], "unknown flag '--sparsty'; did you mean '--sparsity'?; see --help"),
        (["--lerning-rat=1"], "unknown flag '--lerning-rat'"),
        (["--epoch", "3"], "unknown flag '--epoch'; did you mean '--epochs'?; see --help"),
        (["rigl"], "unknown argument 'rigl'; see --help"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--epochs", "two"], "argument --epochs: takes a whole number, found 'two'"),
        (["--epochs", "1.5"], "argument --epochs: takes a whole number, found '1.5'"),
        (["--epochs", ""], "argument --epochs: takes a whole number, found ''"),
        (["--lr", "1e-x"], "argument --lr: takes a number, found '1e-x'"),
        (["--dry-run=yes"], "argument --dry-run: ignored explicit argument 'yes'"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(InputError) as error:
        parse_flags(arguments, "")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1" + "0" * 400])
def test_numbers_that_cannot_be(name, text):
    with pytest.raises(InputError, match=f"{name}|{flag(name)}"):
        parse_flags([f"{flag(name)}={text}"], "")


@pytest.mark.parametrize("name", NUMBERS)
def test_zero(name):
    if name in MAY_BE_ZERO:
        assert parse_flags([flag(name), "0"], "") == {name: 0}
        return
    with pytest.raises(InputError, match=rf"flags: {name} must be (above 0|at least 1), found 0"):
        parse_flags([flag(name), "0"], "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", "1"),
        ("sparsity", "1.5"),
        ("dropout", "1"),
        ("drop", "1.1"),
        ("stop", "2"),
        ("escape", "1.01"),
        ("validation", "0.9"),
        ("momentum", "1"),
        ("label_smoothing", "1"),
        ("members", "100000"),
        ("seed", "99999999999"),
    ],
)
def test_numbers_that_are_too_large(name, value):
    with pytest.raises(InputError, match=f"flags: {name} must be at most"):
        parse_flags([flag(name), value], "")


@pytest.mark.parametrize("name", CHOICES)
def test_choices_name_the_nearest(name):
    choice = CHOICES[name][-1]
    for found in CHOICES[name]:
        assert parse_flags([flag(name), found], "") == {name: found}
    with pytest.raises(InputError) as error:
        parse_flags([flag(name), choice + "x"], "")
    text = ", ".join(CHOICES[name])
    assert str(error.value) == (
        f"flags: {name} should be one of {text}, found '{choice}x'; did you mean '{choice}'?"
    )


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rigll"}, "unknown method 'rigll'; did you mean 'rigl'"),
        ({"method": "EDST"}, "unknown method 'EDST'"),
        ({"dataset": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"model": "wrn16_2"}, "unknown model 'wrn16_2'; did you mean 'wrn16-2'"),
        ({"model": "wrn17-2"}, "model 'wrn17-2': depth 17 is not"),
        ({"method": "dense", "sparsity": 0.5}, "method 'dense' has no sparsity"),
        ({"method": "rigl", "members": 3}, "'rigl' trains one network, found members 3"),
        ({"method": "set", "topology": "rigl"}, "'set' and --topology rigl contradict"),
        ({"method": "dense", "topology": "static"}, "'dense' and --topology static contradict"),
        (
            {"method": "dense", "start": "snip"},
            "--start snip chooses sparse first blocks, method 'd",
        ),
        ({"method": "granet", "start": "snip"}, "sparse first blocks, topology 'granet' has none"),
        ({"method": "lottery", "start": "grasp"}, "sparse first blocks, method 'lottery' has none"),
        ({"method": "pf", "weight_init": "fan-in"}, "--weight-init fan-in .* 'pf' starts dense"),
        ({"method": "rigl", "start_sparsity": 0.5}, "--start-sparsity is of topology 'granet'"),
        (
            {"distribution": "uniform", "erk_power": 2.0},
            "--erk-power 2 is of distributions erk",
        ),
        ({"method": "dense", "erk_power": 2.0}, "'dense' is dense, and --erk-power 2 of sparse"),
        ({"method": "rigl", "start": "snip", "erk_power": 2.0}, "itself: leave --erk-power 2 out"),
        ({"method": "pf", "block": "1x1", "erk_power": 0.5}, "use --prune-scope layer"),
        ({"method": "granet", "sparsity": 0.5}, "from --start-sparsity 0.5 to --sparsity 0.5"),
    ],
)
def test_names_and_contradictions(settings, message):
    with pytest.raises(InputError, match=message):
        resolve(Config(**settings))


@pytest.mark.parametrize(
    "text", ["0x32", "32x0", "00x8", "32", "ax3", "-1x2", "1x2x3", "32X32", "8 x 8", "", "Auto"]
)
def test_bad_blocks(text):
    with pytest.raises(InputError, match="block must be BOxBC with positive sizes"):
        parse_block(text)
    if text:
        with pytest.raises(InputError, match="block must be BOxBC"):
            resolve(Config(block=text))


@pytest.mark.parametrize("digits", ["٠x8", "9" * 5000 + "x8"])
def test_strange_digits(digits):
    with pytest.raises(InputError, match="block must be"):
        parse_block(digits)


def test_blocks():
    assert parse_block("32x8") == (32, 8)
    assert parse_block("auto") == "auto"
    assert layer_block("auto", (640, 320, 3, 3)) == (128, 64)
    assert layer_block("auto", (10, 160)) == (32, 32)
    assert layer_block("16x4", (8, 8)) == layer_block([16, 4], (8, 8)) == (16, 4)
    for block in [(0, 4), (4,), (4, 4, 4), (4.0, 4), (-1, 1)]:
        with pytest.raises(InputError, match="two positive integers"):
            layer_block(block, (8, 8))


def test_the_defaults_are_a_small_edst():
    config = resolve(Config())
    assert (config.method, config.dataset, config.members) == ("edst", "digits", 3)
    assert (config.topology, config.sparsity, config.epochs) == ("rigl", 0.8, 72)
    assert config.dense_epochs == config.epochs
    assert None not in (config.model, config.block, config.batch_size, config.lr)


@pytest.mark.parametrize(
    ("settings", "epochs", "dense_epochs"),
    [
        ({"method": "edst"}, 450, 250),
        ({"method": "edst", "members": 7}, 850, 250),
        ({"method": "dst-ensemble"}, 750, 250),
        ({"method": "rigl"}, 250, 250),
        ({"method": "edst", "dataset": "imagenet", "members": 4}, 310, 150),
        ({"method": "edst", "dataset": "mnist"}, 54, 54),
        ({"method": "edst", "dataset": "imagefolder:images", "members": 2}, 126, 126),
        ({"method": "rigl", "dataset": "mnist", "epochs": 7}, 7, 7),
        ({"method": "rigl", "epochs": 7, "dense_epochs": 9}, 7, 9),
    ],
)
def test_epochs_of_recipes(settings, epochs, dense_epochs):
    config = resolve(Config(**{"dataset": "cifar10", **settings}))
    assert (config.epochs, config.dense_epochs) == (epochs, dense_epochs)


def test_given_settings_win_over_the_recipe():
    given = {"lr": 0.7, "weight_decay": 0.0, "label_smoothing": 0.0, "batch_size": 3}
    config = resolve(Config(dataset="imagenet", sparsity=0.5, block="1x1", **given))
    assert {name: getattr(config, name) for name in given} == given
    assert (config.sparsity, config.block) == (0.5, "1x1")


@pytest.mark.parametrize("method", ["edst", "set", "rigl", "snfs", "granet"])
def test_sparsity_zero_leaves_nothing_to_update(method):
    with pytest.raises(InputError, match="no blocks to update at sparsity 0"):
        resolve(Config(method=method, sparsity=0.0))


def test_a_power_of_the_densities():
    assert resolve(Config(erk_power=0.5)).layer_densities == ErdosRenyi(power=0.5)
    assert resolve(Config(erk_power=2.0, distribution="er")).layer_densities.kernel is False
    assert resolve(Config()).layer_densities == "erk"


def test_an_ensemble_may_be_of_dense_networks():
    config = resolve(Config(method="dst-ensemble", topology="static", sparsity=0.0))
    assert config.sparsity == 0


def test_recipes_are_complete():
    for name in RECIPES:
        config = resolve(Config(dataset=name))
        assert recipe_for(name).lr == config.lr == 0.1
        assert warmup_share(config) == pytest.approx(5 / 170 if name == "imagenet" else 0)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("bad\n  name"), 2, "error: bad name\n"),
        (RunFailure("loss is nan"), 1, "failed: loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("at step 3;\ncontinue", 15), 143, "stopped: at step 3; continue"),
    ],
)
def test_errors_are_one_line(raised, code, line, capsys):
    def command(arguments):
        raise raised

    with pytest.raises(SystemExit) as stop:
        run_command(command)
    found = capsys.readouterr()
    assert (stop.value.code, found.out) == (code, "")
    assert found.err.startswith(line)
    assert found.err.count("\n") == 1


def test_a_command_that_ends_well():
    with pytest.raises(SystemExit) as stop:
        run_command(lambda arguments: None)
    assert stop.value.code == 0


def test_nearest():
    assert nearest("epoch", ["epochs", "lr"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == ""


def test_runs_of_before_are_read_unless_they_used_what_is_gone(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"method": "rigl", **GONE}))
    assert read_config_file(str(path)) == {"method": "rigl"}
    for name, value in (("ablation", 0.3), ("score", "l2"), ("fan_in", "constant")):
        path.write_text(json.dumps({"method": "rigl", name: value}))
        found = f"config file '{path}': setting '{name}' was removed, found {json.dumps(value)}: "
        with pytest.raises(InputError, match=f"{found}leave it out"):
            read_config_file(str(path))


@pytest.mark.parametrize("name", GONE)
def test_flags_that_are_gone(name):
    with pytest.raises(InputError, match=f"^flag '{flag(name)}' was removed; leave it out$"):
        parse_flags([f"{flag(name)}=l2"], "")


def test_settings_by_their_earlier_names(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"regroup": true}')
    assert (
        read_config_file(str(path)) == parse_flags(["--regroup"], "") == {"permute_channels": True}
    )
    with pytest.raises(InputError, match="regroup is the earlier name of permute_channels; leave"):
        check_values({"regroup": True, "permute_channels": False}, "file")


def test_a_paper_beside_the_settings_is_for_people(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"paper": {"accuracy": 0.963}, "method": "edst"}))
    assert read_config_file(str(path)) == {"method": "edst"}


OPTIONS = {name: set(method.options) for name, method in METHODS.items()}
OWNED = set().union(*OPTIONS.values())


@pytest.mark.parametrize("method", [name for name, own in OPTIONS.items() if own])
def test_settings_of_some_methods_are_decided_there_and_refused_elsewhere(method):
    given = {"teacher": "run"} if method == "kd-ticket" else {}
    config = resolve(Config(method=method, dropout=0.1, **given))
    assert all(getattr(config, name) is not None for name in OPTIONS[method])
    assert all(getattr(config, n) is None for n in OWNED if n not in OPTIONS[method])
    for name in OPTIONS[method]:
        with pytest.raises(InputError, match=f"'static' has no {flag(name)}, which belongs to"):
            resolve(Config(method="static", **{name: getattr(config, name)}))


@pytest.mark.parametrize(("block", "scope"), [("1x1", "global"), ("8x8", "layer"), (None, "layer")])
def test_single_weights_are_ranked_over_all_layers_and_blocks_within_each(block, scope):
    assert resolve(Config(method="pf", block=block)).prune_scope == scope
    assert resolve(Config(method="pf", block=block, prune_scope="global")).prune_scope == "global"


@pytest.mark.parametrize("name", ["\0", "a" * 256, "a/" * 2001, "\ud800"])
def test_what_no_file_can_be_called_is_refused(name):
    with pytest.raises(InputError, match=r"out\.json: .* cannot be the name of anything"):
        check_values({"data_dir": name}, "out.json")
