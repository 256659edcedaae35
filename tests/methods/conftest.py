"""Small runs of a method, each in a folder of its own."""

import pytest
from finished_runs import train_with

FLAGS = ["--model", "mlp", "--batch-size", "256", "--device", "cpu"]


@pytest.fixture
def run(own_folder, capsys):
    """Train with some flags into the folder `out`; return the JSON object."""
    return train_with(FLAGS, capsys)
