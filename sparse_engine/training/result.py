"""The result of a run: its JSON line, and what is printed before it."""

import json
import resource
from collections import defaultdict
from typing import Any

import torch

from sparse_engine.config.config import Config
from sparse_engine.device import DTYPES
from sparse_engine.evaluation.tables import metrics_table
from sparse_kernels.dispatch.backend import choose_backend
from sparse_kernels.timing import disturbance

# What a run's JSON line has of its ensemble on the test split, of its time, and of its costs.
METRICS = ("accuracy", "nll", "ece", "brier", "member_accuracy", "disagreement", "kl")
TIMES = (
    *("seconds_per_step", "dense_seconds_per_step", "time_ratio", "train_time_ratio"),
    *("narrow_model", "narrow_seconds_per_step", "core_wait"),
)
COSTS = ("train_flops", "train_flops_ratio", "test_flops_ratio", "parameters", "bytes")

# Below this share of their FLOPs on kernels a run is told how to have more.
MOSTLY = 0.8


def describe(
    config: Config,
    device: torch.device,
    costs: dict[str, Any],
    metrics: dict[str, Any] | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Return the JSON object of a run; what was not measured is null."""
    shares = backend_shares(config, device, costs)
    return {
        "method": config.method,
        "dataset": config.dataset,
        "model": config.model,
        "sparsity": config.sparsity,
        "block": config.block,
        "distribution": config.distribution,
        "members": config.members,
        "epochs": config.epochs,
        "dense_epochs": config.dense_epochs,
        "seed": config.seed,
        **{name: (metrics or {}).get(name) for name in METRICS},
        **{name: costs[name] for name in COSTS},
        "train_seconds": seconds,
        **dict.fromkeys(TIMES),  # of step_times, where they are comparable
        "peak_memory_bytes": None if seconds is None else peak_memory(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": config.dtype,
        "backend": "+".join(sorted(shares)) or "dense",
        "kernel_flops_share": sum(shares.get(name, 0.0) for name in ("triton", "native")),
    }


def backend_shares(config: Config, device: torch.device, costs: dict[str, Any]) -> dict[str, float]:
    """Return what the sparse layers run on, and the share of their FLOPs that each takes."""
    dtype, flops = DTYPES[config.dtype], defaultdict(float)
    for plan in costs["plans"]:
        if not plan.is_dense:
            sizes = (*plan.shape, 1, 1)[:4] + plan.block
            dense = costs["layer_flops"][plan.name]
            positions = config.batch_size * (dense // (2 * plan.weights))
            backend = choose_backend(device, dtype, sizes, plan.active / plan.total, positions)
            flops[backend] += dense * plan.density
    total = sum(flops.values())
    return {name: own / total for name, own in flops.items()}


def backends_in_words(shares: dict[str, float]) -> str:
    """Return one line that says what the sparse layers run on."""
    if not shares:
        return "no sparse layers"
    parts = (f"{name} ({share:.0%} of their FLOPs)" for name, share in sorted(shares.items()))
    return "sparse layers run on " + ", ".join(parts)


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes that tensors took on a GPU, or the process's peak on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def costs_in_words(result: dict[str, Any]) -> str:
    """Return what a run costs of training and test, and against what."""
    return (
        f"training {result['train_flops_ratio']:.2f} times the FLOPs of --method dense "
        f"({result['dense_epochs']} epochs), test {result['test_flops_ratio']:.2f} times those of "
        "one dense network"
    )


def times_in_words(result: dict[str, Any]) -> str:
    """Return what a step takes beside a dense one, and the run beside the dense run.

    Where most sparse FLOPs are multiplied without kernels it says so, and what would change that.
    """
    share = result["train_flops_ratio"] * result["dense_epochs"] / result["epochs"]
    words = (
        f"a step takes {1e3 * result['seconds_per_step']:.3g} ms, of the dense network "
        f"{1e3 * result['dense_seconds_per_step']:.3g} ms: {result['time_ratio']:.2f} of its time "
        f"(FLOPs: {share:.2f}); this run takes {result['train_time_ratio']:.2f} of the seconds of "
        "the dense run it stands for"
    )
    if result["narrow_model"]:
        seconds = 1e3 * result["narrow_seconds_per_step"]
        words += f"\na step of dense {result['narrow_model']} takes {seconds:.3g} ms"
    if disturbed := disturbance(result["core_wait"]):
        words += f"\n{disturbed}"
    if result["kernel_flops_share"] < MOSTLY and "masked" in result["backend"]:
        words += (
            f"\n{1 - result['kernel_flops_share']:.0%} of the sparse layers' FLOPs are dense ones "
            "here (masked), which saves memory and no time: --block 32x32, a wider --model, and on "
            "a CPU a C++ compiler let kernels run"
        )
    return words


def print_result(result: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Print its times, the table of tickets and ensemble, the costs in words, the JSON line."""
    if result["time_ratio"] is not None:
        print(times_in_words(result))
    print("\n" + metrics_table(metrics))
    print(
        f"\nsparsity {result['sparsity']:.3g}; {costs_in_words(result)}; "
        f"{result['train_seconds']:.0f} s of training on {result['device']}"
    )
    print_json(result)


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(result), flush=True)
