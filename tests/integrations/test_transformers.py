"""The callback for the Trainer of transformers, in a process of its own."""

import pytest
from client_process import results_of

pytest.importorskip("accelerate", reason="accelerate is not installed: extra integration")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of("transformers_worker.py", tmp_path_factory.mktemp("transformers"))


def test_accumulated_gradients_choose_the_blocks_of_the_full_batch(found):
    assert found["accumulated"]["equal"]
    assert found["accumulated"]["moved"] > 10


def test_the_trainer_says_how_long_the_run_is(found):
    assert found["accumulated"]["stop"] == 0.75 * 2 * 8


@pytest.mark.parametrize("where", ["reported", "history"])
def test_what_updates_did_is_logged(found, where):
    rows = [row for row in found["accumulated"][where] if "loss" in row]
    assert len(rows) == 5
    assert all({"sparsity/density", "sparsity/exchanged"} <= row.keys() for row in rows)
    assert "sparsity/survival" in rows[-1]


@pytest.mark.parametrize("restore", ["False", "True"])
def test_a_resumed_run_ends_bit_equal(found, restore):
    assert found["resumed"][restore]


def test_a_checkpoint_without_the_callback_is_gone_on_from(found):
    assert found["joined_late"] == [32, 2]


def test_averages_have_the_models_blocks(found):
    assert found["averaged"]


def test_what_cannot_work_is_refused_in_a_line(found):
    told = found["refused"]
    assert told["dense"] == "the model has no sparse layer: call sparsify first"
    assert "it was made before sparsify" in told["early"]
    assert told["deepspeed"].startswith("DeepSpeed ZeRO trains flat copies")
    assert "restore_callback_states_from_checkpoint" in told["made anew"]
    assert told["bf16"] == "nothing"
