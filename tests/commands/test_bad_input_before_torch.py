"""Bad input that is told before torch is imported, which takes seconds."""

import json
import os
from pathlib import Path

import pytest
from refusals import assert_refused, command, files

import sparse_engine

TIMED = ["--distribution", "timed", "--time-budget"]
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def no_torch(tmp_path_factory, monkeypatch):
    """Commands end with a traceback if they import torch or numpy."""
    blocked = tmp_path_factory.mktemp("blocked")
    for name in ("torch", "numpy"):
        (blocked / f"{name}.py").write_text("raise RuntimeError('imported')")
    paths = [str(blocked), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def make_run(name, **settings):
    """Write the folder of a run that has not begun."""
    Path(name).mkdir()
    Path(name, "config.json").write_text(json.dumps(settings))


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1"], "sparsity must be at most"),
        (["--sparsity", "-0.1"], "sparsity must be at least 0, found -0.1"),
        (["--sparsity", "nan"], "sparsity must be a finite number, found nan"),
        (["--method", "edts"], "unknown method 'edts'; did you mean 'edst'?"),
        (["--model", "wrn28_10"], "unknown model 'wrn28_10'; did you mean 'wrn28-10'?"),
        (["--dataset", "cifar"], "unknown data set 'cifar'; did you mean 'cifar10'?"),
        (["--data-dri", "."], "unknown flag '--data-dri'; did you mean '--data-dir'?"),
        (["rigl"], "unknown argument 'rigl'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--block", "0x32"], "block must be BOxBC with positive sizes"),
        (["--layer-blocks", '{"conv1": "8"}'], "layer_blocks: 'conv1': block must be BOxBC"),
        (["--layer-blocks", "[1]"], "layer_blocks should be of type dict, found [1]"),
        (["--block=-8x8"], "block must be BOxBC with positive sizes"),
        (["--epochs", "0"], "epochs must be at least 1, found 0"),
        (["--epochs", "ten"], "takes a whole number, found 'ten'"),
        (["--batch-size", "-5"], "batch_size must be at least 1, found -5"),
        (["--members", "0"], "members must be at least 1, found 0"),
        (["--method", "mimo", "--members", "1"], "'mimo' is of several members, found members 1"),
        (["--method", "fge", "--members", "1"], "use at least 2, or --method dense"),
        (["--method", "mc-dropout"], "method 'mc-dropout' needs dropout; use --dropout 0.1"),
        (["--method", "mc-dropout", "--members", "3"], "'mc-dropout' trains one network, found"),
        (
            ["--method", "deep-ensemble", "--sparsity", "0.5"],
            "use --method dst-ensemble --topology",
        ),
        (["--method", "treenet", "--topology", "rigl"], "'treenet' and --topology rigl contradict"),
        (
            ["--method", "treenet", "--shared-stages", "4"],
            "'wrn10-6' has 3 stages, found shared_st",
        ),
        (["--method", "batch-ensemble", "--batch-size", "5"], "use --batch-size 6 or more"),
        (["--method", "mimo", "--input-repetition", "1.5"], "input_repetition must be at most 1"),
        (["--method", "mimo", "--passes", "3"], "'mimo' has no --passes, which belongs to mc-drop"),
        (["--lr", "nan"], "lr must be a finite number, found nan"),
        (["--lr", "inf"], "lr must be a finite number, found inf"),
        (["--lr", "0"], "lr must be above 0, found 0"),
        (["--device", "gpu"], "device should be one of auto, cpu, cuda, found 'gpu'"),
        (["--config", "none.json"], "config file 'none.json' does not exist"),
        (["--config", "freetickets/edst-m3-wrn28-10-cifar11"], "did you mean 'freetickets/edst-m3"),
        (["--config", "."], "config file '.' cannot be read"),
        (["--config", "text.json"], "config file 'text.json' is not JSON"),
        (["--config", "key.json"], "unknown setting 'epoch'; did you mean 'epochs'?"),
        (["--config", "type.json"], "epochs should be of type int, found '3'"),
        (["--config", "nan.json"], "lr must be a finite number, found nan"),
        (["--method", "dense", "--sparsity", "0.5"], "method 'dense' has no sparsity"),
        (["--method", "rigl", "--members", "2"], "method 'rigl' trains one network"),
        (["--method", "lottery", "--sparsity", "0"], "method 'lottery' has nothing to prune"),
        (["--method", "ltr", "--topology", "rigl"], "'ltr' and --topology rigl contradict"),
        (["--method", "sup-tickets", "--members", "2"], "'sup-tickets' trains one network"),
        (["--method", "sup-tickets", "--cycles", "0"], "cycles must be at least 1, found 0"),
        (
            ["--method", "sup-tickets", "--averaging", "mean"],
            "averaging should be one of caa, cima",
        ),
        (["--method", "kd-ticket"], "method 'kd-ticket' needs --teacher RUN"),
        (["--teacher", "run"], "method 'edst' has no --teacher, which belongs to kd-ticket"),
        (["--rounds", "2"], "method 'edst' has no --rounds, which belongs to lottery, ltr"),
        (["--method", "rigl", "--escape", "0.5"], "'rigl' has no --escape, which belongs to edst"),
        (["--method", "lottery", "--rewind-point", "0.6"], "rewind_point must be at most 0.5"),
        (["--scale", "0"], "scale must be above 0, found 0"),
        (["--taps", "any"], "taps should be one of each, row, all, found 'any'"),
        (["--topology", "granett"], "granet, found 'granett'; did you mean 'granet'?"),
        (["--start", "snap"], "start should be one of random, snip, grasp, found 'snap'"),
        (["--method", "granet", "--start", "snip"], "topology 'granet' has none"),
        (["--method", "granet", "--start-sparsity", "0.9"], "the first must be the smaller"),
        (["--weight-init", "he"], "weight_init should be one of dense, fan-in, found 'he'"),
        (["--downsample-rate", "1"], "downsample_rate must be at most 0.99, found 1"),
        (["--distribution", "timed"], "distribution 'timed' needs --time-budget"),
        (["--time-budget", "0.3"], "--time-budget is of distribution 'timed', found 'uniform'"),
        ([*TIMED, "0"], "time_budget must be above 0, found 0"),
        ([*TIMED, "1.5"], "time_budget must be at most 1, found 1.5"),
        ([*TIMED, "0.3", "--sparsity", "0.8"], "the sparsity is a result of --time-budget"),
        ([*TIMED, "0.3", "--match", "time"], "'timed' has a budget of its own: leave --match time"),
        ([*TIMED, "0.3", "--start", "snip"], "--start snip chooses the layers' densities itself"),
        ([*TIMED, "0.3", "--method", "dense"], "method 'dense' is dense, and distribution 'timed'"),
        (["--match", "flop"], "match should be one of params, flops, time, found 'flop'; did you"),
        (["--match", "time", "--method", "pf", "--block", "1x1"], "--prune-scope global chooses"),
        (["--densities", "0.5 x"], "takes a JSON object, found '0.5 x'"),
        (["--densities", '{"a": 0.5}'], "densities are of distribution 'timed'"),
        (["--config", "densities.json"], "densities should be of type dict, found 0.5"),
        (["--resume", "none"], "'none' is not a run folder: it has no config.json"),
        (["--resume", "."], "'.' is not a run folder: it has no config.json"),
        (["--resume", "run", "--epochs", "3"], "run 'run' has epochs 2, found 3: a resumed run"),
        (["--resume", "broken"], "is not JSON"),
    ],
)
def test_told_before_torch_is_imported(arguments, message):
    Path("text.json").write_text("lr = 1")
    Path("key.json").write_text('{"epoch": 3}')
    Path("type.json").write_text('{"epochs": "3"}')
    Path("nan.json").write_text('{"lr": NaN}')
    Path("densities.json").write_text('{"densities": 0.5}')
    make_run("run", method="rigl", epochs=2)
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{")
    assert_refused(message, "train", *arguments)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["run", "--zzzzz", "a"], "unknown flag '--zzzzz'; see --help"),
        (["run", "--data-dri", "."], "unknown flag '--data-dri'; did you mean '--data-dir'?"),
        (["run", "none"], "'none' is not a run folder: it has no config.json"),
        (["run", "run/config.json"], "'run/config.json' is not a run folder"),
        (["run", "other"], "run 'other' is of data set cifar10, and 'run' of digits"),
        (["run", "--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
        (["run", "--atack", "pgd"], "unknown flag '--atack'; did you mean '--attack'?"),
        (["run", "--attack", "gpd"], "unknown attack 'gpd'; did you mean 'pgd'?"),
        (["run", "--attack", "pgd", "--epsilon", "0"], "--epsilon must be above 0"),
        (["run", "--corruptions", "--severities", "1,6"], "--severities lie between 1 and 5"),
        (["run", "--ood", "digits"], "--ood digits is the data set of the runs; name another"),
        (["run", "--out", "run/config.json"], "output file 'run/config.json' exists"),
    ],
)
def test_evaluate_tells_before_torch_is_imported(arguments, message):
    make_run("run", dataset="digits")
    make_run("other", dataset="cifar10")
    assert_refused(message, "evaluate", *arguments)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["zzz"], "unknown command 'zzz'; there are train, evaluate, export, demo, plan"),
        (["--method", "rigl"], "name one first, as in sparse-engine train --method"),
        (["train", "--epochs", "0"], "epochs must be at least 1, found 0"),
        (["evaluate", "none"], "'none' is not a run folder"),
        (["plan", "--seconds", "0"], "--seconds must be above 0 and finite, found 0"),
        (["plan", "--seconds", "9", "--rows", "none.csv"], "rows 'none.csv' does not exist"),
        (["plan", "--seconds", "9", "--model", "wrn9-2"], "model 'wrn9-2': depth 9"),
        (["configs", "wrn28", "resnet"], "no configuration has 'wrn28 resnet' in its name"),
    ],
)
def test_the_command_of_commands_tells_before_torch_is_imported(arguments, message):
    assert_refused(message, "__main__", *arguments)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: sparse-engine [--help | --version] COMMAND [flags]"),
        (["--help"], "usage: sparse-engine [--help | --version] COMMAND [flags]"),
        (["--version"], f"sparse-engine {sparse_engine.__version__}"),
        (["train", "--help"], "usage: sparse-engine train"),
        (["evaluate", "--help"], "usage: sparse-engine evaluate"),
        (["export", "--help"], "usage: sparse-engine export"),
        (["configs", "--help"], "usage: sparse-engine configs"),
        (["plan", "--help"], "usage: sparse-engine plan"),
    ],
)
def test_help_needs_no_torch(arguments, line):
    done = command("__main__", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(line)
    assert files() == {}


def test_a_module_says_what_its_command_says():
    printed = [command(*c, "--help").stdout for c in (("train",), ("__main__", "train"))]
    assert printed[0] == printed[1]
    assert printed[0]


def test_the_check_for_torch_finds_it(no_torch):
    assert "RuntimeError: imported" in command("train", "--dry-run").stderr
