"""Bad input as a user meets it: exit code 2, one line on stderr, and nothing written."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_engine import evaluate, train
from sparse_engine.config.flags import run_command
from sparse_engine.errors import RunFailure
from sparse_engine.runs.files import load_file
from sparse_engine.training.trainer import Trainer

NO_GPU = not torch.cuda.is_available()
FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
TIMED = ["--distribution", "timed", "--time-budget"]
# Weight decay this strong multiplies every weight by -2 in each step.
BLOW_UP = ["--lr", "1e-6", "--momentum", "0", "--weight-decay", "3e6", "--epochs", "20"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # Several threads wait for each other on a busy machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def no_torch(tmp_path, monkeypatch):
    """Commands end with a traceback if they import torch or numpy."""
    for name in ("torch", "numpy"):
        (tmp_path / "blocked").mkdir(exist_ok=True)
        (tmp_path / "blocked" / f"{name}.py").write_text("raise RuntimeError('imported')")
    paths = [str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"sparse_engine.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
    )


def files():
    return {str(p): p.is_file() and p.read_bytes() for p in Path().rglob("*")}


def assert_refused(message, module, *arguments):
    """Check what a process of its own does with bad input."""
    before = files()
    done = command(module, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, message)
    assert files() == before


def assert_refused_here(message, monkeypatch, capfd, main, *arguments):
    """Check the same in this process, which has imported torch already."""
    before = files()
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    found = capfd.readouterr()
    assert (stop.value.code, found.out) == (2, "")
    assert_one_line(found.err, message)
    assert files() == before


def assert_one_line(stderr, message):
    assert stderr.startswith("error: ")
    assert message in stderr
    assert (stderr.count("\n"), stderr[-1]) == (1, "\n")


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
            "'wrn16-2' has 3 stages, found shared_st",
        ),
        (["--method", "batch-ensemble", "--batch-size", "5"], "use --batch-size 6 or more"),
        (["--method", "mimo", "--input-repetition", "1.5"], "input_repetition must be at most 1"),
        (["--method", "mimo", "--passes", "3"], "'mimo' has no --passes, which belongs to mc-drop"),
        (["--lr", "nan"], "lr must be a finite number, found nan"),
        (["--lr", "inf"], "lr must be a finite number, found inf"),
        (["--lr", "0"], "lr must be above 0, found 0"),
        (["--device", "gpu"], "device should be one of auto, cpu, cuda, found 'gpu'"),
        (["--config", "none.json"], "config file 'none.json' does not exist"),
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
        (["--taps", "any"], "taps should be one of each, all, found 'any'"),
        (["--topology", "granett"], "granet, found 'granett'; did you mean 'granet'?"),
        (["--start", "snap"], "start should be one of random, snip, grasp, found 'snap'"),
        (["--method", "granet", "--start", "snip"], "topology 'granet' has none"),
        (["--method", "granet", "--start-sparsity", "0.9"], "the first must be the smaller"),
        (["--weight-init", "he"], "weight_init should be one of dense, fan-in, found 'he'"),
        (["--downsample-rate", "1"], "downsample_rate must be at most 0.99, found 1"),
        (["--distribution", "timed"], "distribution 'timed' needs --time-budget"),
        (["--time-budget", "0.3"], "--time-budget is of distribution 'timed', found 'erk'"),
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
@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_help_needs_no_torch(module):
    done = command(module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m sparse_engine.{module}" in done.stdout
    assert files() == {}


def test_the_check_for_torch_finds_it(no_torch):
    assert "RuntimeError: imported" in command("train", "--dry-run").stderr


NEEDS_TORCH = [
    (["--sparsity", "0.99", "--block", "32x32"], "the budget leaves a layer without a block"),
    (["--data-dir", "none"], "--data-dir none is not a folder"),
    (["--out", "full"], "output folder 'full' exists and is not empty"),
    (["--backend", "triton"], "backend 'triton' needs a CUDA GPU, found device 'cpu'"),
    (["--dataset", "broken", "--data-dir", "full"], "broken.npz"),
]


def write_full_folder():
    Path("full").mkdir()
    Path("full/broken.npz").write_bytes(b"PK\x03\x04 cut short")
    arrays = {"images": np.zeros((20, 8, 8), np.uint8), "labels": np.arange(20) % 2}
    splits = {f"{split}_{k}": v for split in ("train", "test") for k, v in arrays.items()}
    np.savez("full/own.npz", **splits)
    data = Path("full/own.npz").read_bytes()
    Path("full/cut.npz").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("arguments", "message"), NEEDS_TORCH[:2]
)  # the others below, in one process
def test_told_by_a_process_that_needs_torch(arguments, message):
    write_full_folder()
    assert_refused(message, "train", *FLAGS, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *NEEDS_TORCH,
        (["--sparsity", "0.99", "--block", "32x32", "--dry-run"], "leaves a layer without a block"),
        (["--model", "torchvision/resnet5"], "resnet5"),
        (["--dataset", "cifar10"], "cifar10 lies in files; pass --data-dir"),
        (["--dataset", "cifar10", "--data-dir", "full"], "cifar10"),
        (["--dataset", "cut", "--data-dir", "full"], "cut.npz"),
        (["--dataset", "imagefolder:full"], "full has no folder 'train'"),
        (["--dataset", "imagefolder:none", "--dry-run"], "none has no folder 'train'"),
        (["--dataset", "own", "--data-dir", "full"], "a batch of 256 cannot be drawn from 20"),
        (["--out", "full/own.npz"], "output folder 'full/own.npz' exists and is not empty"),
        (["--out", "full/own.npz/run"], "output folder 'full/own.npz/run' cannot be made"),
        (["--members", "50", "--epochs", "3"], "15 steps are too few for 51 phases"),
        (["--update-interval", "9999"], "too short for a topology update every 9999"),
        (["--validation", "1e-9", "--select", "validation"], "a validation fraction of 1e-09"),
        (["--dry-run", "--backend", "triton"], "backend 'triton' needs a CUDA GPU"),
        (["--tune"], "so there is nothing to tune"),
        (["--method", "treenet", "--model", "torchvision/vgg11"], "vgg11"),
        (["--method", "snapshot", "--epochs", "1", "--members", "6"], "too few for 6 phases"),
        (["--method", "lottery", "--rounds", "2", "--members", "3"], "of 2 rounds has 2 tickets"),
        (["--method", "lottery", "--rounds", "99", "--epochs", "9"], "45 steps are too few"),
        (["--method", "sup-tickets", "--epochs", "1"], "5 steps are too few for 4 phases"),
        (["--downsample-rate", "0.5"], "the model cannot take images of 4x4"),
        (["--method", "kd-ticket", "--teacher", "none"], "'none' is not a run folder"),
        (["--method", "kd-ticket", "--teacher", "full"], "'full' is not a run folder"),
    ],
)
def test_told_before_anything_is_written(arguments, message, monkeypatch, capfd):
    write_full_folder()
    assert_refused_here(message, monkeypatch, capfd, train.main, *FLAGS, *arguments)


@pytest.mark.skipif(not NO_GPU, reason="needs a machine without a GPU")
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_device_that_is_absent(arguments, monkeypatch, capfd):
    message = "device 'cuda' is not available on this machine; use --device cpu"
    flags = ["--device", "cuda", *arguments]
    assert_refused_here(message, monkeypatch, capfd, train.main, *flags)


def write_finished_run(capfd):
    train.main([*FLAGS, "--method", "static", "--epochs", "1", "--out", "run"])
    capfd.readouterr()


def remove_tickets():
    Path("run/member_1.pt").unlink()


def truncate_ticket():
    Path("run/member_1.pt").write_bytes(Path("run/member_1.pt").read_bytes()[:999])


def checkpoint_as_ticket():
    Path("run/last.pt").rename("run/member_1.pt")


def ticket_of_another_model():
    settings = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**settings, "model": "wrn10-1"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_tickets, "run 'run' has no tickets yet (no member_K.pt)"),
        (truncate_ticket, "checkpoint 'run/member_1.pt' is truncated or not a checkpoint"),
        (checkpoint_as_ticket, "'run/member_1.pt' is of another kind: it has no member"),
        (ticket_of_another_model, "'run/member_1.pt' does not fit the configuration"),
    ],
)
def test_evaluate_refuses_runs_without_good_tickets(damage, message, monkeypatch, capfd):
    write_finished_run(capfd)
    damage()
    assert_refused_here(message, monkeypatch, capfd, evaluate.main, "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ood", "svnh"], "unknown data set 'svnh'; did you mean 'svhn'?"),
        (["--ood", "svhn"], "svhn lies in files; pass --data-dir"),
        (["--ood", "empty", "--data-dir", "full"], "test_images is empty (shape (0, 1, 8, 8))"),
        (["--ood", "cut", "--data-dir", "full"], "cut.npz"),
    ],
)
def test_evaluate_refuses_foreign_images_it_cannot_show(arguments, message, monkeypatch, capfd):
    write_finished_run(capfd)
    write_full_folder()
    arrays = {f"{s}_images": np.zeros((n, 8, 8), np.uint8) for s, n in (("train", 2), ("test", 0))}
    labels = {f"{s}_labels": np.zeros(n, int) for s, n in (("train", 2), ("test", 0))}
    np.savez("full/empty.npz", **arrays, **labels)
    flags = ["run", *arguments, "--out", "found.json"]
    assert_refused_here(message, monkeypatch, capfd, evaluate.main, *flags)


def test_a_truncated_checkpoint():
    train.main([*FLAGS, "--method", "static", "--epochs", "1", "--out", "run"])
    Path("run/metrics.json").unlink()
    Path("run/previous.pt").unlink()
    Path("run/last.pt").write_bytes(Path("run/last.pt").read_bytes()[:5000])
    before = files()
    done = command("train", "--resume", "run")
    assert done.returncode == 2
    assert_one_line(done.stderr, "checkpoint 'run/last.pt' is truncated or not a checkpoint")
    assert files() == before


def assert_last_checkpoint_is_good(step):
    state = load_file(Path("run/last.pt"))
    assert 0 < state["progress"]["step"] <= step
    values = [v for v in state["model"].values() if v.is_floating_point()]
    assert all(bool(torch.isfinite(v).all()) for v in values)
    assert not Path("run/metrics.json").exists()
    assert not list(Path("run").glob("*.part"))


def test_a_run_that_blows_up_keeps_its_last_good_checkpoint():
    done = command("train", *FLAGS, "--method", "static", *BLOW_UP, "--out", "run")
    assert done.returncode == 1
    found = re.fullmatch(
        r"failed: (the loss is|predictions are) not finite at step (\d+); first layer with such an "
        r"output: .+; any checkpoint is from before; try a lower --lr\n",
        done.stderr,
    )
    assert found, done.stderr
    assert_last_checkpoint_is_good(int(found[2]))


@pytest.mark.parametrize("layer", ["hidden1", "hidden2", "classifier"])
@pytest.mark.parametrize(
    ("after", "message"), [(7, "the loss is not finite at step 7"), (10, "predictions are not")]
)
def test_step_and_layer_are_named(layer, after, message, monkeypatch):
    train_step = Trainer._train_step

    def break_layer(self, phase):
        train_step(self, phase)
        if self.progress.step + 1 == after:
            next(self.network.model.get_submodule(layer).parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Trainer, "_train_step", break_layer)
    with pytest.raises(RunFailure, match=f"{message}.*: {layer}; any checkpoint is from"):
        train.main([*FLAGS, "--method", "rigl", "--epochs", "3", "--out", "run"])
    assert_last_checkpoint_is_good(5)
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 2
