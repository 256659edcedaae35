"""A trained torchvision model made sparse, fine-tuned, and saved sparse and dense.

python examples/fine_tune.py                        digits, some minutes on a CPU
python examples/fine_tune.py --weights DEFAULT      torchvision's weights, which it downloads

Without --weights the model is trained dense first. Put your own images where the digits are.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import get_model

from sparse_engine import DynamicSparsity, dense_state_dict, report, sparsify
from sparse_engine.sparsity.update_schedule import UpdateRule


def digits() -> tuple[Tensor, Tensor]:
    """Return images [N, 3, 32, 32] and labels [N]."""
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = F.interpolate(pixels.float().view(-1, 1, 8, 8) / 8 - 1, scale_factor=4)
    return images.expand(-1, 3, -1, -1).contiguous(), labels


def train(
    model: nn.Module, images: Tensor, labels: Tensor, steps: int, rule: UpdateRule | None
) -> None:
    """Take steps with SGD, and with topology updates if there is a rule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    interval = max(1, steps // 10)
    dynamic = None
    if rule is not None:
        dynamic = DynamicSparsity(model, optimizer, rule, interval, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (32,))
        F.cross_entropy(model.train()(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
        if dynamic is not None:
            dynamic.step()
        optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified right."""
    parts = [model.eval()(part).argmax(1) for part in images.split(128)]
    return float((torch.cat(parts) == labels).float().mean())


def main(name: str, weights: str | None, sparsity: float, tiny: bool, out: Path) -> None:
    """Train if need be, make sparse, fine-tune, save."""
    torch.manual_seed(0)
    images, labels = digits()
    order = torch.randperm(len(images))
    test, rest = order[:360], order[360:]
    if tiny:
        test = test[:40]
    model = get_model(name, weights=weights, num_classes=1000 if weights else 10)
    if weights:
        head = model.get_submodule("fc")
        assert isinstance(head, nn.Linear)
        model.fc = nn.Linear(head.in_features, 10)
    else:
        train(model, images[rest], labels[rest], 2 if tiny else 150, None)
        print(f"dense accuracy {accuracy(model, images[test], labels[test]):.4f}")
    sparsify(model, sparsity, block=(32, 32), skip=["conv1", "fc"])
    train(model, images[rest], labels[rest], 10 if tiny else 300, "rigl")
    print(report(model))
    print(f"sparse accuracy {accuracy(model, images[test], labels[test]):.4f}")
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / "sparse.pt")
    torch.save(dense_state_dict(model), out / "dense.pt")
    for file in ("sparse.pt", "dense.pt"):
        print(f"{file}: {(out / file).stat().st_size / 2**20:.1f} MiB")
    again = get_model(name, weights=None, num_classes=10)
    again.load_state_dict(torch.load(out / "dense.pt", weights_only=True))
    print(f"loaded dense: accuracy {accuracy(again, images[test], labels[test]):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="a ResNet of torchvision")
    parser.add_argument("--weights", help="of torchvision, such as DEFAULT")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--tiny", action="store_true", help="a few steps")
    parser.add_argument("--out", type=Path, default=Path("fine-tuned"))
    arguments = parser.parse_args()
    main(arguments.model, arguments.weights, arguments.sparsity, arguments.tiny, arguments.out)
