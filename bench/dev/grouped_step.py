"""Training steps of members as one network against those of each by itself.

    python -m bench.dev.grouped_step                     WRN-16-8, three members, 80 and 90 % sparse
    python -m bench.dev.grouped_step --model wrn28-10 --batch 128 --rounds 20      on a GPU

Both are the trainer's own steps, without topology updates: on a GPU in bf16, captured, and the
single networks fused as a run has them; on a CPU in fp32. They take turns; ratios are of rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from bench.report.tables import markdown
from bench.speed.timing import STEP, clock_of, in_turn, quantile
from bench.speed.trainer_step import trainer_step
from sparse_engine.config.config import Config
from sparse_engine.data.arrays import ImageArrays
from sparse_engine.data.catalog import TABLE
from sparse_engine.methods.resolve import resolve
from sparse_engine.training.grouped import start_group
from sparse_engine.training.network import build_network

COLUMNS = ("sparsity", "one by one, ms", "as one, ms", "as one / one by one")
INFO = TABLE["cifar10"]


def measure(config: Config, device: torch.device, rounds: int) -> list[str]:
    """Return a row: medians, and quantiles of the rounds' ratios."""
    batch, members = config.batch_size or 1, config.members or 1
    empty = torch.zeros(batch, INFO.channels, INFO.height, INFO.width, dtype=torch.uint8)
    split = ImageArrays(empty, torch.zeros(batch, dtype=torch.long))
    group, _ = start_group(config, split, INFO, device, steps=1)
    alone = [build_network(config, INFO, device, member) for member in range(members)]
    contenders = {
        "as one": {"step": trainer_step(group, config, INFO, members * batch)},
        "one by one": {
            f"{n}": trainer_step(own, config, INFO, batch) for n, own in enumerate(alone)
        },
    }
    # Three steps before a graph is recorded, and that one.
    times = in_turn(
        contenders, rounds, clock_of(device.type), warm_up=5 if device.type == "cuda" else 1
    )
    together, apart = times["as one"][STEP], times["one by one"][STEP]
    ratios = [ours / theirs for ours, theirs in zip(together, apart, strict=True)]
    low, high = quantile(ratios, 0.2), quantile(ratios, 0.8)
    middle = quantile(together, 0.5) / quantile(apart, 0.5)
    spread = [
        f"{1e3 * quantile(t, 0.5):.0f} ({1e3 * quantile(t, 0.2):.0f}-{1e3 * quantile(t, 0.8):.0f})"
        for t in (apart, together)
    ]
    return [f"{config.sparsity:g}", *spread, f"{middle:.2f} ({low:.2f}-{high:.2f})"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="wrn16-8")
    parser.add_argument("--batch", type=int, default=32, help="images of a member")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--block", default="64x64")
    parser.add_argument("--sparsities", nargs="*", type=float, default=[0.8, 0.9])
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    config = Config(
        method="dst-ensemble",
        topology="static",
        dataset="cifar10",
        data_dir=".",
        model=flags.model,
        batch_size=flags.batch,
        members=flags.members,
        epochs=flags.members,
        block=flags.block,
        distribution="uniform",
        dtype="bf16" if device.type == "cuda" else "fp32",
        parallel="grouped",
    )
    rows = [
        measure(resolve(replace(config, sparsity=sparsity)), device, flags.rounds)
        for sparsity in flags.sparsities
    ]
    print(markdown(COLUMNS, rows))


if __name__ == "__main__":
    main()
