"""Several processes train what one does: real processes, that talk through gloo."""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import world_worker
from resumed_runs import assert_equal_runs, rows_of, tickets_of
from torch.distributed import TCPStore
from world_worker import FLAGS, RUNS

from sparse_engine import TicketEnsemble
from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.train import main
from sparse_engine.training.processes import SINGLE_PROCESS, merged
from sparse_engine.training.run import check_parallel

# More than any of the tests' processes have, one after another.
MEETINGS = 12


def together(folder, *tasks, size=2):
    """Let processes do tasks of world_worker; return their exit codes and what they print.

    As torchrun does, this process holds the stores in which they meet, and from the start, so that
    no other program can have taken a port in between.
    """
    stores = [
        TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in range(MEETINGS)
    ]
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MEETING_PORTS": " ".join(str(store.port) for store in stores),
    }
    command = [sys.executable, world_worker.__file__, *tasks]
    with ExitStack() as stack:
        logs = [stack.enter_context(Path(folder, f"log-{r}").open("w+")) for r in range(size)]
        processes = []
        for rank, log in enumerate(logs):
            own = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            options = {"cwd": folder, "env": own, "stdout": log, "stderr": subprocess.STDOUT}
            processes.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(processes[-1].kill)
        codes = [process.wait(timeout=240) for process in processes]
        return codes, [Path(log.name).read_text() for log in logs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of runs of two processes and of one each, and what the first printed."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = ("rigl", "fp16", "members", "bytes_sent", "threads_left", "other_topology")
    codes, printed = together(folder, *tasks)
    assert codes == [0, 0], printed
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, flags in RUNS.items():
            main([*FLAGS, *flags, "--out", name])
    return folder, printed


def assert_close_runs(first, second, tolerance):
    for one, other in zip(rows_of(first), rows_of(second), strict=True):
        for key in ("train_loss", "nll", "exploration_rate"):
            assert float(one[key]) == pytest.approx(float(other[key]), abs=tolerance), (one, other)
        # Rounding may turn the prediction of one image.
        assert float(one["accuracy"]) == pytest.approx(float(other["accuracy"]), abs=1.1 / 360)
    for one, other in zip(tickets_of(first), tickets_of(second), strict=True):
        for name, value in one.items():
            if name.endswith("block_ids"):
                assert torch.equal(value, other[name]), name
            elif value.is_floating_point():
                assert torch.allclose(value, other[name], atol=tolerance), name


@pytest.mark.parametrize(("name", "tolerance"), [("rigl", 1e-5), ("fp16", 3e-3)])
def test_two_processes_train_what_one_does(name, tolerance, trained, monkeypatch):
    """Gradients that are scored are averaged first, so the blocks are the same."""
    monkeypatch.chdir(trained[0])
    assert_close_runs(name, f"{name}-together", tolerance)


def test_no_thread_outlives_a_process_group(trained):
    """One that lets go of a tensor while Python ends would abort the process."""
    for printed in trained[1]:
        assert "THREADS 0 of" in printed


def test_members_apart_equal_members_one_after_another(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    assert_equal_runs("members", "members-together")
    results = [Path(n, "metrics.json").read_text() for n in ("members", "members-together")]
    accuracies = [re.search(r'"accuracy": [\d.]+', text)[0] for text in results]
    assert accuracies[0] == accuracies[1]


def test_gradients_that_are_sent_fall_with_density(trained):
    sent = dict(re.findall(r"BYTES (\S+) (\d+)", trained[1][0]))
    dense = int(sent["dense"])
    assert int(sent["0.8"]) / dense == pytest.approx(0.2, abs=0.02)
    assert int(sent["0.9"]) / dense == pytest.approx(0.1, abs=0.02)


def test_topologies_that_differ_stop_the_run(trained):
    for printed in trained[1]:
        assert re.search("FAILURE the blocks after update 1 of layer hidden1 differ betw", printed)


def test_only_the_first_process_prints_and_writes(trained):
    folder, printed = trained
    assert "run folder rigl-together" in printed[0]
    assert '"accuracy"' not in printed[1]
    assert "run folder" not in printed[1]
    assert not list(folder.glob("**/*.part"))


def test_a_process_that_dies_ends_the_others_and_the_run_resumes(tmp_path, monkeypatch, trained):
    """With one process in place of two, from within an epoch."""
    codes, printed = together(tmp_path, "one_dies")
    assert codes == [1, -9], printed
    assert re.search(
        "FAILURE process 0 cannot reach another, which has ended or does not answ", printed[0]
    )
    monkeypatch.chdir(tmp_path)
    main(["--resume", "rigl-together"])
    assert_close_runs(trained[0] / "rigl", "rigl-together", 1e-5)


@pytest.mark.slow
def test_four_processes(tmp_path, monkeypatch):
    codes, printed = together(tmp_path, "rigl", "members", size=4)
    assert codes == [0] * 4, printed
    monkeypatch.chdir(tmp_path)
    for name, tolerance in (("rigl", 1e-5), ("members", 0)):
        main([*FLAGS, *RUNS[name], "--out", name])
        assert_close_runs(name, f"{name}-together", tolerance)


def test_a_single_process_asks_nobody():
    assert SINGLE_PROCESS.gather(3) == [3]
    assert SINGLE_PROCESS.from_first(lambda: 3) == 3
    assert (SINGLE_PROCESS.any(True), SINGLE_PROCESS.any(False)) == (True, False)
    assert SINGLE_PROCESS.share(7) == slice(0, 7)
    assert SINGLE_PROCESS.mean(torch.ones(2)).tolist() == [1, 1]


def test_dealing_out_is_undone():
    for size in (1, 2, 3, 4):
        assert merged([range(10)[rank::size] for rank in range(size)]) == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 127}, "a batch of 127 images cannot be shared by 2 processes equally; use"),
        ({"batch_size": 128, "compile": True}, "--compile is for one process, found 2; leave it"),
        ({"batch_size": 128, "cuda_graph": "on"}, "--cuda-graph on is for one process, found 2"),
    ],
)
def test_what_several_processes_cannot_do(settings, message):
    with pytest.raises(InputError, match=message):
        check_parallel(Config(**settings), 2)


def test_norms_of_all_images_need_a_gpu(tmp_path, monkeypatch):
    """A run that began on one goes on there; on a CPU nothing of its folder is touched."""
    monkeypatch.chdir(tmp_path)
    flags = [*FLAGS, *RUNS["rigl"], "--out", "run"]
    with pytest.raises(InputError, match=r"--sync-batch-norm runs on GPUs alone.* leave it out"):
        main([*flags, "--sync-batch-norm"])
    assert not list(tmp_path.iterdir())
    main(flags)
    config = Path("run/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sync_batch_norm": True}))
    tickets = TicketEnsemble.load("run")
    assert len(tickets.member_logits(torch.zeros(2, 1, 8, 8))) == 1
    main(["--resume", "run"])
    Path("run/metrics.json").unlink()
    with pytest.raises(InputError, match="can be resumed on a GPU"):
        main(["--resume", "run"])


def test_members_that_depend_on_each_other_are_not_trained_apart(tmp_path):
    with pytest.raises(InputError, match="such as dst-ensemble; 'edst' does not"):
        main([*FLAGS, "--method", "edst", "--parallel", "members", "--out", str(tmp_path / "run")])
