"""Values that FSDP2 cuts up among three processes train as one process would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import shard_worker
import sharded_runs

PROCESSES = 3


def results(path, *cases):
    """Return what every process found in some cases, all but the slow ones unless given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(PROCESSES)}
    together["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, shard_worker.__file__, str(path / "found"), *cases]
    workers = [
        subprocess.Popen(command, env={**os.environ, **together, "RANK": str(rank)})
        for rank in range(PROCESSES)
    ]
    assert [worker.wait(600) for worker in workers] == [0] * PROCESSES
    return [json.loads(Path(f"{path}/found.{rank}").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results(tmp_path_factory.mktemp("shards"))


COMPARED = [n for n in shard_worker.CASES if n not in ("held", "mixed", "saved", "sent", "refused")]


@pytest.mark.parametrize("name", COMPARED)
def test_blocks_and_numbers_are_those_of_one_process(found, name):
    first, *others = (result[name] for result in found)
    assert all(other == first for other in others)
    _, updates, is_equal, far = first
    assert updates == 3
    assert is_equal
    assert far < 1e-5


def test_every_process_holds_its_slots_and_their_state(found):
    """Of 12, 15 and 1 slots; a process without a slot of a layer takes part in its updates."""
    assert [result["held"][0] for result in found] == [[12, 15, 1]] * 3
    assert [result["held"][1] for result in found] == [[4, 5, 1], [4, 5, 0], [4, 5, 0]]
    assert [result["held"][2] for result in found] == [[4, 5, 1], [4, 5, 0], [4, 5, 0]]


def test_a_checkpoint_goes_on_with_fewer_processes(found):
    for blocks, updates, is_equal, far in (result["saved"] for result in found[:-1]):
        assert blocks
        assert updates == 1
        assert is_equal
        assert far < 1e-5


def test_bf16_computes_and_fp32_is_kept(found):
    first, *others = (result["mixed"][:4] for result in found)
    assert first == others[0] == others[1]
    blocks, updates, is_kept, _ = first
    assert updates == 3
    assert is_kept
    assert blocks != sharded_runs.blocks_at_first()


def test_a_process_holds_and_sends_less_as_density_falls(found):
    """A quarter of the weights, lists of blocks aside; an update sends dense gradients."""
    (dense, _, sends, _), (held, lists, sends_less, with_update) = found[0]["sent"]
    weights = 3 * 48 * 48 * 4
    assert dense == 4 * weights / PROCESSES
    assert held == dense / 4
    assert 0 < lists < weights / 4
    assert sends_less == sends / 4
    assert weights < with_update - sends_less < 2 * weights


TOLD = {
    "later": "call fully_shard first, then make the optimizer, then DynamicSparsity",
    "tensor parallel": "a DTensor that fully_shard did not make",
    "columns": "a DTensor placed as S(1), as by tensor parallelism",
    "other blocks": "different blocks: seed them alike before sparsify",
    "group": "cut up among 3 processes, and process_group has 1",
    "weight": "read it within forward, or between model.unshard() and model.reshard()",
    "dense state": "load dense weights, before fully_shard",
}


@pytest.mark.parametrize("name", TOLD)
def test_what_cannot_be_is_refused_in_all_processes(found, name):
    for result in found:
        assert TOLD[name] in result["refused"][name]


@pytest.mark.slow
def test_24_steps_of_networks_for_images_are_those_of_one_process(tmp_path):
    slow = results(tmp_path, *shard_worker.SLOW)
    for name in shard_worker.SLOW:
        first, *others = (result[name] for result in slow)
        assert all(other == first for other in others), name
        _, updates, is_equal, far = first
        assert updates >= 3
        assert is_equal, name
        assert far < 1e-5, name
