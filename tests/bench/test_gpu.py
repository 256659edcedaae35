"""`make bench-gpu`: workers that die or hang cost one job; a budget holds; two files come out."""

import subprocess
import sys

import pytest

from bench import gpu, jobs, plan
from bench.records import Records, environment

# A worker of four jobs: it dies in the second and hangs in the third, when it gets there.
WORKER = """
import sys, time
first = int(sys.argv[sys.argv.index("--first") + 1])
for job in range(first, 4):
    print(f"job {job} of 4: name, about 0 s", flush=True)
    if job == 1: sys.exit(3)
    if job == 2: time.sleep(60)
"""


def test_a_worker_that_dies_or_hangs_costs_one_job(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "SILENCE", 1.0)
    with (tmp_path / "log").open("w") as log:
        code = gpu.supervise([sys.executable, "-c", WORKER], 30, log, "run")
    text = (tmp_path / "log").read_text()
    assert code == 0
    assert [int(found[1]) for found in gpu.STARTED.finditer(text)] == [0, 1, 2, 3]
    assert "the worker ended with code 3 in job 1; on to job 2" in text
    assert "stopped: it took too long" in text


def test_a_worker_that_cannot_start_is_not_repeated(tmp_path):
    with (tmp_path / "log").open("w") as log:
        code = gpu.supervise([sys.executable, "-c", "import nothing_there"], 60, log, "run")
    assert code == 1
    assert (tmp_path / "log").read_text().count("No module named") == 1


def test_nothing_is_started_without_time(tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert gpu.supervise(["not a command"], gpu.LEAST, log, "run") == 0


def test_the_tiny_plan_fills_one_file(monkeypatch, tmp_path, capsys):
    found = Records(tmp_path / "cpu-all.csv", {"run": "now", **environment("cpu")})
    jobs.run_jobs(plan.jobs(found, "cpu", tiny=True), jobs.Budget(1000))
    assert {row["report"] for row in found.rows} == {"training", "ensemble", "kernels"}
    assert "no row" not in capsys.readouterr().out
    arguments = ["gpu", "--out", str(tmp_path), "--run", "now", "--budget", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert gpu.main() == 0
    said = capsys.readouterr().out
    assert "wrn10-2, 4" in said
    assert len(said) < 6000
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cpu-all.csv", "bench-gpu.log"}


@pytest.fixture(scope="module")
def gpu_plan():
    return plan.jobs(type("NoRows", (), {"rows": []}), "cuda")


def test_the_headline_comes_first(gpu_plan):
    names = [job.name for job in gpu_plan]
    assert names[0] == "smoke"
    assert all(name.startswith("wrn28-10: dense") for name in names[1:4])
    assert "wrn28-10 0.8 uniform 64x64: auto rows captured" in names[4:8]
    # Every sparse job comes after the dense ones it is compared with.
    for number, name in enumerate(names):
        network = name.split()[0]
        if network in ("resnet18", "vit-layer") and "0." in name:
            assert f"{network}: dense captured" in names[:number]
    assert len(set(names)) == len(names)
    before_layers = next(n for n, name in enumerate(names) if name.startswith("conv"))
    assert sum(job.seconds for job in gpu_plan[:before_layers]) < 540


def test_what_supervises_needs_no_torch():
    code = "import sys, bench.gpu, bench.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
