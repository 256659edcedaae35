"""The script that trains every method: it knows them all, and its table says how many seeds."""

import json

import numpy as np

from bench.study import methods
from sparse_engine.methods.registry import METHODS


def test_every_method_is_trained():
    assert set(methods.METHODS) == set(METHODS)


def test_a_pupil_is_given_the_dense_run_of_its_seed(tmp_path):
    arguments = methods.command("kd-ticket", 2, tmp_path, ["--model", "mlp"])
    assert arguments[arguments.index("--teacher") + 1] == str(tmp_path / "dense-2")
    assert arguments[arguments.index("--seed") + 1] == "2"
    assert "--sparsity" not in methods.command("dense", 0, tmp_path, [])


def test_the_table_has_mean_and_range_over_finished_runs(tmp_path):
    for name, accuracy, flops in (
        ("dense-0", 0.6, 4.0),
        ("edst-0", 0.4, 1.0),
        ("edst-1", 0.5, 3.0),
    ):
        run = dict.fromkeys(methods.COLUMNS, 1.0)
        run |= {"accuracy": accuracy, "member_accuracy": [0.3, 0.4], "train_flops": flops}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(run))
    (tmp_path / "edst-2").mkdir()  # not finished
    dense, edst = methods.table(methods.results(tmp_path)).splitlines()[2:]
    cells = [cell.strip() for cell in edst.strip("|").split("|")]
    assert cells[:5] == ["edst", "2", "2", "0.350", "0.450 (0.400-0.500)"]
    assert cells[7] == "0.500"  # of the dense run's FLOPs
    assert "(" not in dense


def test_the_small_set_is_averaged_over_two_by_two_pixels(tmp_path):
    images = np.arange(4 * 3 * 32 * 32).reshape(4, 3, 32, 32).astype(np.uint8)
    splits = {f"{s}_images": images for s in ("train", "test")}
    labels = {f"{s}_labels": np.arange(4) for s in ("train", "test")}
    np.savez(tmp_path / "cifar10.npz", **splits, **labels)
    methods.prepare(tmp_path, 3, 2)
    with np.load(tmp_path / f"{methods.NAME}.npz") as found:
        assert found["train_images"].shape == (3, 3, 16, 16)
        assert found["test_labels"].tolist() == [0, 1]
        expected = images[0, 1, 4:6, 8:10].astype(float).mean().round()
        assert found["train_images"][0, 1, 2, 4] == expected
