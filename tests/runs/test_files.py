"""Files of a run that are damaged or not what they should be, each refused for what is wrong."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from resumed_runs import (
    Killed,
    assert_equal_runs,
    contents,
    train,
    train_and_kill,
)

from sparse_engine.errors import InputError
from sparse_engine.runs.files import load_file, save_file
from sparse_engine.train import main


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.zeros(3)),
    ],
)
def test_a_tensor_that_is_not_whole_is_refused(tensor, tmp_path):
    torch.save({"format": "sparse-engine-1", "t": tensor}, tmp_path / "file.pt")
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        load_file(tmp_path / "file.pt")


def test_one_bit_of_a_checkpoint_matters(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"format": "sparse-engine-1", "t": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(1000.0).numpy().tobytes()) + 800] ^= 1
    path.write_bytes(data)
    assert torch.load(path)["t"][200] != 200  # torch itself does not notice
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        load_file(path)


def test_what_is_compressed_is_not_unpacked(tmp_path):
    torch.save({"format": "sparse-engine-1", "t": torch.zeros(10**6)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        load_file(tmp_path / "small.pt")


pytestmark = pytest.mark.usefixtures("own_folder")


def stopped_run(monkeypatch):
    train_and_kill(monkeypatch, 2, "--method", "rigl", "--epochs", "4")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def truncate_to_the_start(path):
    path.write_bytes(path.read_bytes()[:100])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(bytes(range(256)) * 20)


def text(path):
    path.write_text("not a checkpoint\n")


def pickled_list(path):
    path.write_bytes(pickle.dumps([1, 2, 3]))


def pickled_function(path):
    path.write_bytes(pickle.dumps(exec))


def saved_function(path):
    torch.save({"format": "sparse-engine-1", "progress": exec}, path)


def tensor(path):
    torch.save(torch.zeros(3), path)


def state_dict(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def ticket(path):
    save_file({"member": 1, "model": {}}, path)


def checkpoint_of_another_run(path):
    train("other", "--method", "rigl", "--epochs", "4", "--block", "4x4")
    path.write_bytes(Path("other/last.pt").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "checkpoint 'out/last.pt' is truncated or not a checkpoint"),
        (truncate_to_the_start, "is truncated or not a checkpoint"),
        (empty, "is truncated or not a checkpoint"),
        (garbage, "is truncated or not a checkpoint"),
        (text, "is truncated or not a checkpoint"),
        (pickled_list, "is truncated or not a checkpoint"),
        (pickled_function, "is truncated or not a checkpoint"),
        (saved_function, "is truncated or not a checkpoint"),
        (tensor, "was not written by this program"),
        (state_dict, "was not written by this program"),
        (ticket, "is of another kind: it has no progress"),
        (checkpoint_of_another_run, "was trained with block 4x4, found 8x8"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_the_run_is_refused(damage, message, monkeypatch):
    stopped_run(monkeypatch)
    Path("out/previous.pt").unlink()
    damage(Path("out/last.pt"))
    files = contents("out")
    with pytest.raises(InputError, match=message):
        main(["--resume", "out"])
    assert contents("out") == files


@pytest.mark.parametrize("damage", [truncate, empty, garbage, ticket, Path.unlink])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(damage, monkeypatch, capsys):
    train("whole", "--method", "rigl", "--epochs", "4")
    stopped_run(monkeypatch)
    damage(Path("out/last.pt"))
    main(["--resume", "out"])
    assert "; continuing from the one before, of step 5" in capsys.readouterr().err
    assert_equal_runs("whole", "out")


def test_a_checkpoint_of_other_data_is_refused(monkeypatch):
    stopped_run(monkeypatch)
    state = load_file(Path("out/last.pt"))
    state["model"]["hidden1.bias"] = torch.zeros(3)
    save_file(state, Path("out/last.pt"))
    with pytest.raises(InputError, match="does not fit the data"):
        main(["--resume", "out"])


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_file({"number": 1}, path)

    def half_save(content, file):
        file.write(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half_save)
    with pytest.raises(Killed):
        save_file({"number": 2}, path)
    assert load_file(path, "number")["number"] == 1
