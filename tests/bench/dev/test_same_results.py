"""What counts as the same results of two checkouts, and what is told of others."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.dev import same_results
from sparse_engine.errors import InputError, RunFailure

ROWS = [{"epoch": 1, "nll": 0.5, "train_seconds": 1.0}, {"epoch": 2, "nll": 0.25}]
RESULT = {"accuracy": 0.5, "train_seconds": 1.0, "peak_memory_bytes": 7}
STATE = {"weight": torch.tensor([1.0, float("nan"), 0.0]), "count": torch.tensor(3)}


def write(folder, rows=ROWS, result=RESULT, state=STATE, tickets=1):
    """Make the files of a run that are compared."""
    run = folder / "run"
    run.mkdir(parents=True)
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (run / "metrics.json").write_text(json.dumps(result))
    for number in range(1, tickets + 1):
        torch.save({"model": state}, run / f"member_{number}.pt")
    return folder


def test_times_and_memory_may_differ(tmp_path):
    old = write(tmp_path / "old")
    later = [{**row, "train_seconds": 2.0} for row in ROWS]
    new = write(tmp_path / "new", later, {**RESULT, "train_seconds": 2.0, "peak_memory_bytes": 8})
    assert list(same_results.differences(old, new)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": [ROWS[0], {**ROWS[1], "nll": 0.26}]}, "metrics.csv, row 2: nll differs: 0.25"),
        ({"rows": ROWS[:1]}, "metrics.csv, row 2: epoch is only in the old"),
        ({"result": {**RESULT, "accuracy": 0.6}}, "metrics.json: accuracy differs: 0.5 and 0.6"),
        ({"result": {**RESULT, "more": 1}}, "metrics.json: more is only in the new"),
        ({"tickets": 2}, "tickets: names differs: ['member_1.pt'] and ['member_1.pt', 'member_2"),
        ({"state": {"weight": STATE["weight"]}}, "member_1.pt: count is only in the old"),
        ({"state": {**STATE, "count": torch.tensor(3.0)}}, "member_1.pt: count differs"),
        ({"state": {**STATE, "weight": -STATE["weight"].abs()}}, "member_1.pt: weight differs"),
    ],
)
def test_all_else_may_not(change, told, tmp_path):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", **change)
    assert next(same_results.differences(old, new)).startswith(told)


def test_one_bit_of_a_ticket_is_seen(tmp_path):
    weight = STATE["weight"].clone()
    weight[0] = np.nextafter(np.float32(1), np.float32(2)).item()
    old, new = write(tmp_path / "old"), write(tmp_path / "new", state={**STATE, "weight": weight})
    assert list(same_results.differences(old, new)) == ["member_1.pt: weight differs"]


def test_no_tickets_are_not_the_same(tmp_path):
    old, new = write(tmp_path / "old", tickets=0), write(tmp_path / "new", tickets=0)
    assert list(same_results.differences(old, new)) == ["tickets: there are none"]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"'{re.escape(str(tmp_path))}' is no checkout"):
        same_results.main([str(tmp_path), "."])


def test_a_checkout_that_trains_otherwise_is_told_of(tmp_path, monkeypatch, capsys):
    """The code of each checkout is run, not that of this process."""
    checkouts = [tmp_path / "old", tmp_path / "new"]
    for number, checkout in enumerate(checkouts):
        (checkout / "sparse_engine").mkdir(parents=True)
        (checkout / "kernels").mkdir()
        (checkout / "sparse_engine" / "__init__.py").touch()
        made = write(tmp_path / f"made-{number}", result={**RESULT, "accuracy": number})
        program = f"import shutil; shutil.copytree({str(made / 'run')!r}, 'run')"
        (checkout / "sparse_engine" / "train.py").write_text(program)
    both = [*map(str, checkouts), "--runs", "rigl", "lottery"]
    with pytest.raises(RunFailure, match="2 of 2 runs differ"):
        same_results.main(both)
    told = [f"{name}: metrics.json: accuracy differs: 0 and 1" for name in ("rigl", "lottery")]
    assert capsys.readouterr().out.splitlines() == told
    same_results.main([str(checkouts[0]), str(checkouts[0]), "--runs", "rigl"])
    assert capsys.readouterr().out == "rigl: the same\n"
    Path(checkouts[1], "sparse_engine", "train.py").write_text("raise SystemExit(3)")
    with pytest.raises(RunFailure, match="cannot train"):
        same_results.main(both)
    with pytest.raises(RunFailure, match="not stopped but ended with 0"):
        same_results.main([str(checkouts[0]), str(checkouts[1]), "--runs", "edst resumed"])
