"""Loops of one's own in several processes: the same blocks in each, by gradients of all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import loop_worker
import pytest

PROCESSES = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What every process found in every case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = tmp_path_factory.mktemp("loops") / "found"
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(PROCESSES)}
    command = [sys.executable, loop_worker.__file__, str(path)]
    workers = [
        subprocess.Popen(command, env={**os.environ, **together, "RANK": str(rank)})
        for rank in range(PROCESSES)
    ]
    assert [worker.wait(120) for worker in workers] == [0] * PROCESSES
    return [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(PROCESSES)]


TOGETHER = [
    name
    for name in loop_worker.CASES
    if name.partition(",")[0] in ("static", "set", "rigl", "snfs", "no rule")
]


@pytest.mark.parametrize("name", TOGETHER)
def test_processes_have_the_same_blocks_at_the_start_and_the_end(found, name):
    first, *others = (results[name] for results in found)
    assert all(other == first for other in others)
    if name.partition(",")[0] not in ("static", "no rule"):
        assert first[0] != first[1]


def test_scores_are_of_averaged_gradients(found):
    """Micro-batches within processes, and the order in which things are made, change nothing."""
    plain = found[0]["rigl"][1]
    for name in ("made late", "buffers off", "bucket views", "accumulated", "inside another"):
        assert found[0][f"rigl, {name}"][1] == plain, name


def test_a_layer_that_no_process_uses_keeps_its_blocks(found):
    start, end, _ = found[0]["rigl"]
    assert [a == b for a, b in zip(start, end)] == [False, False, True, False]


def test_processes_that_may_end_early_are_refused_and_those_that_say_so_are_not(found):
    for results in found:
        (refused, steps), (told, late) = results["ending early"]
        assert "within DistributedDataParallel.join()" in refused
        assert "exhausted all inputs" in told or "exhausted inputs" in told
        assert (steps, late) == (0, loop_worker.STEPS - 1)


def test_a_sub_group_is_by_itself(found):
    alone, first, second = (results["sub-group"] for results in found)
    assert "a group that this process is in" in alone[0]
    assert first == second
    assert first[0] != first[1]


def test_independent_models_stay_so(found):
    assert found[0]["independent"] != found[1]["independent"]


def test_networks_that_drift_apart_are_refused(found):
    for results in found:
        assert "differ between processes" in results["different"][0]


def test_nothing_is_sent_in_steps_without_an_update(found):
    assert found[0]["messages"] == [[3]]
