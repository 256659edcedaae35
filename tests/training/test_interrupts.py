"""Signals that stop a run, and when checkpoints are due."""

import multiprocessing
import os
import signal

import pytest
from image_folders import write_images
from resumed_runs import assert_equal_runs

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError, Stopped
from sparse_engine.methods.resolve import resolve
from sparse_engine.train import main
from sparse_engine.training.interrupts import CheckpointSchedule, StopSignals
from sparse_engine.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_folder")


def test_the_second_signal_acts_as_ever():
    # A shell's background jobs ignore SIGINT, and these tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_comes_twice_is_one(monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with StopSignals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert signals.received == signal.SIGTERM
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_signal_to_the_group_is_lost_on_loader_processes(monkeypatch, tmp_path):
    """As SLURM, systemd and terminals send it: also in the evaluation that ends an epoch."""
    for split in ("train", "val"):
        write_images(tmp_path / split, 2, ("a", "b"))
    flags = ["--method", "rigl", "--model", "wrn10-1", "--block", "8x8", "--batch-size", "2"]
    flags += ["--epochs", "1", "--device", "cpu", "--dataset", f"imagefolder:{tmp_path}"]
    main([*flags, "--workers", "0", "--out", "whole"])
    train_step, predict = Trainer._train_step, Trainer.predict

    def stop_all(run):
        children = [worker.pid for worker in multiprocessing.active_children()]
        assert children or run.progress.step == 2
        for process in (os.getpid(), *children, os.getpid()):
            os.kill(process, signal.SIGTERM)

    def stopped_step(self, phase):
        train_step(self, phase)
        if self.progress.step == 0:
            stop_all(self)

    def stopped_predict(self, model):
        if self.progress.step == 2:
            stop_all(self)
        return predict(self, model)

    monkeypatch.setattr(Trainer, "_train_step", stopped_step)
    monkeypatch.setattr(Trainer, "predict", stopped_predict)
    with pytest.raises(Stopped, match="at step 1; continue with --resume run"):
        main([*flags, "--workers", "2", "--out", "run"])
    with pytest.raises(Stopped, match="at step 2; continue with --resume run"):
        main(["--resume", "run", "--workers", "1"])
    main(["--resume", "run", "--workers", "2"])
    assert_equal_runs("whole", "run")


def test_checkpoints_by_steps_and_by_seconds():
    schedule = CheckpointSchedule("3")
    assert [schedule.is_due() for _ in range(4)] == [False, False, True, True]
    schedule.restart()
    assert not schedule.is_due()
    assert not any(CheckpointSchedule(None).is_due() for _ in range(9))


def test_a_clock_that_goes_backwards_only_delays_a_checkpoint():
    times = iter([100.0, 105.0, 50.0, 109.0, 110.0, 40.0, 45.0, 51.0])
    schedule = CheckpointSchedule("10s", lambda: next(times))
    assert [schedule.is_due() for _ in range(4)] == [False, False, False, True]
    schedule.restart()
    assert [schedule.is_due() for _ in range(2)] == [False, True]


@pytest.mark.parametrize("period", ["0", "-3", "0s", "s", "", "nan", "nans", "infs", "2.5", "10m"])
def test_a_period_that_is_none(period):
    with pytest.raises(InputError, match="takes steps such as 500, or seconds such as 600s, found"):
        resolve(Config(checkpoint_every=period))
