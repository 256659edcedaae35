"""What is measured is kept in a file that several processes share."""

import json
import re

import pytest
import torch

from sparse_kernels import measurements
from sparse_kernels.measurements import Measurements
from sparse_kernels.triton.tile_choice import checked_tile
from sparse_kernels.triton.tiles import Tile

SMALL, LARGE = Tile(16, 16, 4, 3), Tile(32, 16, 4, 3)


def test_saving_keeps_what_another_process_found(tmp_path):
    path = tmp_path / "tiles.json"
    first, second = Measurements(path, checked_tile), Measurements(path, checked_tile)
    first.add({"a": SMALL})
    second.add({"b": LARGE})
    first.save()
    second.save()
    assert Measurements(path, checked_tile).entries == {"a": SMALL, "b": LARGE}
    assert first.entries == {"a": SMALL}  # read once: nothing changes under a running process


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 3}', '{"a": [16, 16]}', json.dumps({"a": [1 << 20, 16, 4, 3, 0]})]
)
def test_a_damaged_file_is_ignored_and_said(text, tmp_path, caplog):
    path = tmp_path / "tiles.json"
    path.write_text(text)
    assert Measurements(path, checked_tile).entries == {}
    assert "cannot be used" in caplog.text


def test_tiles_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text('{"a": [64, 32, 4, 3, true], "b": [16, 0, 8, 5, false]}')
    tiles = {"a": Tile(64, 32, 4, 3, tma=True), "b": Tile(16, 0, 8, 5)}
    assert Measurements(path, checked_tile).entries == tiles


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu family\t: 6\nmodel\t: 1\nmodel name\t: Xeon 8480\n", "Xeon 8480"),
        ("cpu family\t: 25\nmodel\t: 17\nmodel name\t: EPYC\n", "EPYC (family 25, model 17)"),
        ("model name\t: EPYC\n", "EPYC"),
        ("Features\t: asimd\n", "arm"),
    ],
)
def test_processors_without_a_number_are_told_apart(text, name, monkeypatch):
    monkeypatch.setattr(measurements, "cpuinfo", lambda: f"processor\t: 0\n{text}")
    monkeypatch.setattr(measurements.platform, "processor", lambda: "")
    monkeypatch.setattr(measurements.platform, "machine", lambda: "arm")
    assert measurements.processor.__wrapped__() == name


def test_another_processor_has_a_file_of_its_own(monkeypatch):
    cpu = torch.device("cpu")
    here = measurements.timings("layer-times", cpu).path
    assert re.sub(r"[^A-Za-z0-9.+]+", "_", measurements.processor()) in here.name
    monkeypatch.setattr(measurements, "processor", lambda: "another")
    assert measurements.timings("layer-times", cpu).path != here
