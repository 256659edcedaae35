"""A vision transformer trained from random weights, sparse from the first step.

python examples/vit_from_scratch.py                 digits, some minutes on a CPU
python examples/vit_from_scratch.py --sparsity 0.9 --block 16x16

The four projections of each attention and both layers of each MLP are sparse; patches, positions
and classifier stay dense. Put your own images where the digits are.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.models import VisionTransformer

from sparse_engine import DynamicSparsity, draw_by_fan_in, report, sparsify


def main(sparsity: float, block: str, tiny: bool) -> None:
    """Train, print what there is, and the accuracy on images not trained on."""
    torch.manual_seed(0)
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 8 - 1
    order = torch.randperm(len(images))
    test, train = order[:360], order[360:]
    layers, width = (2, 64) if tiny else (6, 192)
    model = VisionTransformer(8, 2, layers, width // 32, width, 4 * width, num_classes=10)
    # Without trained weights there is no reason for some blocks rather than others.
    sparsify(model, sparsity, block=block, skip="conv_proj, heads*", init="random")
    draw_by_fan_in(model)
    steps = 10 if tiny else 1000
    # Biases, norms and positions have no weight decay; blocks of weights do.
    decayed = [p for name, p in model.named_parameters() if name.endswith(("values", "weight"))]
    known = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.2)
    dynamic = DynamicSparsity(model, optimizer, "rigl", max(1, steps // 20), total_steps=steps)
    for step in range(steps):
        batch = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        dynamic.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print(report(model))
    print(f"weights that were ever active: {dynamic.exploration_rate():.2f}")
    with torch.no_grad():
        right = model.eval()(images[test]).argmax(1) == labels[test]
    print(f"accuracy {right.float().mean():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--block", default="32x32")
    parser.add_argument("--tiny", action="store_true", help="a few steps of a small network")
    arguments = parser.parse_args()
    main(arguments.sparsity, arguments.block, arguments.tiny)
