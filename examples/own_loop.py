"""SparseConv2d and SparseLinear in a network and a training loop of one's own, with RigL.

python examples/own_loop.py [--blocks conv2.png]      handwritten digits, about ten seconds on a CPU
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparse_engine import DynamicSparsity, SparseConv2d, SparseLinear, draw_blocks, report


class Network(nn.Module):
    """Two sparse convolutions and a sparse layer on 8x8 images; the small ends stay dense."""

    def __init__(self) -> None:
        super().__init__()
        block = (16, 16)
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1)
        self.conv2 = SparseConv2d(64, 128, 3, 2, 1, bias=False, density=0.2, block=block)
        self.norm2 = nn.BatchNorm2d(128)
        self.hidden = SparseLinear(128 * 16, 128, density=0.2, block=block)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, 8, 8] to logits [N, 10]."""
        x = F.relu(self.norm2(self.conv2(F.relu(self.conv1(x)))))
        return self.head(F.relu(self.hidden(x.flatten(1))))


def main(tiny: bool, blocks: str | None) -> float:
    """Train, print what there is, and return the accuracy on images not trained on."""
    torch.manual_seed(0)
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images))
    train, test = order[360:], order[:360]
    model, epochs = Network(), 1 if tiny else 12
    steps = epochs * (len(train) // 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval=10, total_steps=steps)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64)[: len(train) // 64]:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            dynamic.step()
            optimizer.zero_grad()
    print(model)
    print(report(model))
    print(f"weights that were ever active: {dynamic.exploration_rate():.2f}")
    if blocks:
        draw_blocks(model.conv2, blocks)
    with torch.no_grad():
        right = model.eval()(images[test]).argmax(1) == labels[test]
    print(f"accuracy {right.float().mean():.4f}")
    return float(right.float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="one epoch")
    parser.add_argument("--blocks", metavar="FILE", help="draw the second layer's blocks here")
    arguments = parser.parse_args()
    main(arguments.tiny, arguments.blocks)
