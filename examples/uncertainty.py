"""An EDST ensemble of digits, and what its members' disagreement says of an image.

python examples/uncertainty.py [--out runs/digits]            about two minutes on a CPU

Entropy of the mean prediction is all uncertainty; mutual information is the part of it on which the
members disagree (Houlsby et al. 2011), and should be high for images unlike those of the training.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from sparse_engine import TicketEnsemble
from sparse_engine.data.load import load_dataset
from sparse_engine.data.splits import batches
from sparse_engine.train import main as train

CPU = torch.device("cpu")


def main(tiny: bool, run: Path) -> None:
    """Train three tickets unless there are some, and print a table."""
    if not run.exists():
        small = ["--model", "mlp", "--block", "8x8", "--epochs", "6"] if tiny else []
        train(["--method", "edst", "--members", "3", "--out", str(run), *small])
    data, ensemble = load_dataset("digits", None), TicketEnsemble.load(str(run))
    parts = list(batches(data.test, data.info, 128, CPU, 0))
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    mean, total, disagreement = ensemble.uncertainty(images)
    right = mean.argmax(1) == labels
    _, strange, strange_disagreement = ensemble.uncertainty(images.flip(2).roll(4, 3))
    print(f"{len(ensemble)} tickets, accuracy {right.float().mean():.4f}")
    print(f"{'':22}{'images':>8}{'entropy':>10}{'mutual information':>20}")
    for what, entropies, information in (
        ("classified right", total[right], disagreement[right]),
        ("classified wrong", total[~right], disagreement[~right]),
        ("upside down, shifted", strange, strange_disagreement),
    ):
        print(f"{what:22}{len(entropies):8}{entropies.mean():10.3f}{information.mean():20.4f}")
    sure = total.argsort()[: round(0.9 * len(total))]
    print(f"accuracy on the surest nine tenths: {right[sure].float().mean():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small network, six epochs")
    parser.add_argument("--out", type=Path, help="the run's folder; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(arguments.tiny, arguments.out or Path(temporary) / "run")
