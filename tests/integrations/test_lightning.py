"""The callback for Lightning's Trainer, in a process of its own."""

import pytest
from client_process import results_of

pytest.importorskip("lightning", reason="lightning is not installed: extra integration")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of("lightning_worker.py", tmp_path_factory.mktemp("lightning"))


def test_accumulated_gradients_choose_the_blocks_of_the_full_batch(found):
    assert found["accumulated"]["equal"]
    assert found["accumulated"]["moved"] > 10


def test_the_trainer_says_how_long_the_run_is(found):
    assert found["accumulated"]["stop"] == 0.75 * 2 * 8


def test_a_resumed_run_ends_bit_equal(found):
    assert found["resumed"] == {"0": [True, 32], "1": [True, 32]}


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_average_is_that_of_dense_weights(found, order):
    # In the model, which Lightning has given the average: swapped in every validation, too.
    assert found["averaged"][order] < 1e-5
    assert found["averaged"]["swa finite"]


def test_the_trainers_logger_gets_what_updates_did(found):
    header, *rows = found["logged"]
    names = header.strip().split(",")
    assert {"sparsity/density", "sparsity/exchanged", "sparsity/survival"} <= set(names)
    steps = [row.strip().split(",")[names.index("step")] for row in rows]
    assert steps == ["3", "6", "9"]


def test_training_on_goes_on(found):
    assert found["trained_on"] == [16, 24]


def test_what_cannot_work_is_refused_in_a_line(found):
    told = found["refused"]
    assert told["dense"] == "the model has no sparse layer: call sparsify first"
    assert "it was made before sparsify" in told["early"]
    assert told["deepspeed"].startswith("DeepSpeed ZeRO trains flat copies")
    assert told["fsdp"].startswith("FSDP1 (FullyShardedDataParallel)")
    assert "too short for a topology update" in told["short"]
    assert told["fast_dev_run"] == told["bf16"] == "nothing"
