"""A small study, the data it is cut from, and rows of its runs."""

import json

import numpy as np

from bench.study.runs import COLUMNS

DIGITS = {
    "title": "tiny",
    "data": {"dataset": "digits", "train": 128, "test": 50},
    "settings": {"model": "mlp", "epochs": 2, "batch_size": 32, "sparsity": 0.5},
    "grids": {
        "blocks": {
            "settings": {"method": "set", "block": ["8x8", "16x16"]},
            "seeds": 2,
            "against": {"block": "16x16"},
        }
    },
}


def study_file(folder, **changes):
    path = folder / "tiny.json"
    path.write_text(json.dumps({**DIGITS, **changes}))
    return path


def digits(folder):
    """Write digits.npz: random images, as a study cuts parts from files alone."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 200), ("test", 60)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(folder / "digits.npz", **arrays)
    return folder


def row_of(run, accuracy, **more):
    values = {"nll": 1.0, "ece": 0.1, "parameters": 1e6, "train_flops": 1e9, **more}
    return dict.fromkeys(COLUMNS, "") | {
        "key": run.key, "accuracy": str(accuracy), **{k: str(v) for k, v in values.items()}
    }  # fmt: skip
