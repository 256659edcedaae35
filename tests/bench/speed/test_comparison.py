"""What the command line of reports on networks asks for."""

import pytest
import torch

from bench import ensemble, training
from bench.speed import comparison
from bench.speed.variant import variants
from sparse_engine.errors import InputError


@pytest.mark.parametrize("module", [training, ensemble])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--networks", "wrm28-10"], "did you mean 'wrn28-10'"),
        (["--blocks", "64"], "such as 32x32"),
        (["--variants", "native sideways"], "variant 'native sideways' is unknown"),
        (["--rouns", "1"], "unknown flag '--rouns'; did you mean '--rounds'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(module, flags, words, tmp_path):
    with pytest.raises(InputError, match=words):
        module.main(["--out", str(tmp_path), *flags])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--variants", "--contenders"])
def test_variants_are_asked_for_by_either_name(flag, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        training.Training, "run", lambda _, case, group: asked.append((case, group))
    )
    training.main(["--tiny", "--out", str(tmp_path), flag, "auto rows", "masked"])
    ((case, group),) = asked
    assert str(case) == "wrn10-2 0.8 uniform 16x16"
    assert tuple(group) == variants("dense", "auto rows", "masked")


def test_numbers_of_threads_come_one_after_another_in_one_run(monkeypatch, tmp_path):
    runs, before = [], torch.get_num_threads()
    monkeypatch.setattr(
        training.Training,
        "run",
        lambda self, *_: runs.append((self.records.facts, torch.get_num_threads())),
    )
    training.main(["--tiny", "--out", str(tmp_path), "--threads", "2", "1"])
    torch.set_num_threads(before)
    assert [(facts["threads"], threads) for facts, threads in runs] == [(2, 2), (1, 1)]
    assert len({facts["run"] for facts, _ in runs}) == 1


def test_the_fastest_dense_network_in_fp32_is_the_one_to_beat():
    dense, compiled, bf16, native = variants("dense", "dense compiled", "dense bf16", "native")
    seconds = {dense: 3.0, compiled: 2.0, bf16: 1.0, native: 0.5}
    times = {variant: {"step": [taken]} for variant, taken in seconds.items()}
    assert comparison.fastest_dense(times) == compiled
    assert comparison.fastest_dense({}) is None


def test_on_a_gpu_the_dense_variants_come_first(monkeypatch, tmp_path):
    jobs = []
    records = type("NoRecords", (), {"rows": [], "path": tmp_path})()
    monkeypatch.setattr(comparison.files, "opened", lambda *_: ("cuda", records))
    monkeypatch.setattr(comparison, "run_jobs", lambda plan, budget: jobs.extend(plan))
    training.main(["--networks", "wrn16-8", "--blocks", "64x64", "--sparsities", "0.8"])
    names = [job.name for job in jobs]
    assert names[:2] == ["wrn16-8: dense", "wrn16-8: dense captured"]
    assert names[4] == "wrn16-8 0.8 uniform 64x64: auto rows captured"
    assert len(names) == len(training.DENSE_ON_GPU) + len(training.ON_GPU)
