"""What is measured on a GPU, and in which order."""

import pytest

from bench.gpu import gpu_tests, plan


@pytest.fixture(scope="module")
def gpu_plan():
    return plan.jobs(type("NoRows", (), {"rows": []}), "cuda")


def test_the_most_important_comes_first_and_fits(gpu_plan):
    names = [job.name for job in gpu_plan]
    assert names[:2] == ["smoke", "GPU tests"]
    assert names[2:4] == ["wrn28-10: dense captured", "wrn28-10: dense compiled captured"]
    ours = [name for name in names[4:19] if name.startswith("wrn28-10 0.")]
    assert [name.split()[3].strip(":") for name in ours] == ["64x64"] * 4 + ["32x32"] * 5 + [
        "auto"
    ] * 6
    assert [name.split(": ")[1] for name in ours if "0.8 uniform 32x32" in name] == [
        "auto rows fuse captured",
        "triton rows fuse captured",  # which `auto` would run dense
        "auto rows captured",
    ]
    layers = names[19:31]
    assert all(name.startswith("conv") and name.endswith("in rows") for name in layers)
    assert names[31:33] == ["wrn28-10: dense", "wrn28-10 0.8 uniform 64x64: auto rows"]
    start = 8.0  # from the command to the first job: processes, imports, the GPU's context
    assert start + sum(job.seconds for job in gpu_plan[:31]) < 300
    assert gpu_plan[1].seconds < gpu_tests.LIMIT
    # Kernels are compiled for the first fused network of each kind of blocks.
    fused = [job for job in gpu_plan[4:19] if "auto rows fuse" in job.name]
    assert fused[0].seconds - fused[1].seconds >= 10
    assert fused[2].seconds > fused[3].seconds


def test_the_plan_has_everything_once_and_dense_first(gpu_plan):
    names = [job.name for job in gpu_plan]
    assert len(set(names)) == len(names)
    for number, name in enumerate(names):
        network = name.split()[0]
        if network in {other.name for other in plan.OTHERS} and "0." in name:
            assert f"{network}: dense captured" in names[:number]
            assert f"{network}: dense compiled captured" in names[:number]
    for part in (
        "erk auto",
        "mask-multiply",
        "grouped captured",
        "linear 4096x4096",
        "128x128",
        "triton rows captured",
        "0.95 uniform",
        "in channels_last",
        "auto rows compiled",
        "conv 3x3 160 at 32x32, strips, blocks 32x32",
        "vgg16 0.9 uniform 64x64 row: triton rows fuse captured",
    ):
        assert any(part in name for name in names)
