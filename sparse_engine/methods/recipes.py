"""What each data set's settings are when nobody says otherwise. Imports no torch.

CIFAR and ImageNet: FreeTickets (Liu et al. 2022), appendix C. The others are ours.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Defaults for a data set.

    epochs: of one sparse network; dense_epochs: of a dense one, where it is another number;
    edst_epochs: of EDST's exploration and of each refinement, 1.8 times a dense run for three
    tickets, as in FreeTickets.
    """

    model: str
    epochs: int
    batch_size: int
    weight_decay: float
    lr: float = 0.1
    block: str = "32x32"
    edst_epochs: tuple[int, int] | None = None
    dense_epochs: int | None = None
    label_smoothing: float = 0.0
    warmup_epochs: float = 0.0
    members: int = 3
    norm_decay: str = "on"
    distribution: str = "erk"


_CIFAR = Recipe("wrn28-10", 250, 128, 5e-4, edst_epochs=(150, 100), dense_epochs=250)
_SMALL = Recipe("resnet20", 30, 128, 5e-4)
RECIPES = {
    # What takes a third of the dense network's time on a CPU.
    "digits": Recipe("wrn10-6", 40, 128, 5e-4, block="16x16", distribution="uniform"),
    "mnist": _SMALL,
    "fashion-mnist": _SMALL,
    "svhn": replace(_SMALL, model="wrn16-4"),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "imagenet": Recipe(
        "torchvision/resnet50",
        200,
        128,
        1e-4,
        edst_epochs=(30, 70),
        dense_epochs=150,
        label_smoothing=0.1,
        warmup_epochs=5,
        members=2,
        norm_decay="off",
    ),
}


def recipe_for(dataset: str) -> Recipe:
    """Return a data set's recipe; image folders and own arrays have a general one."""
    if dataset.startswith("imagefolder:"):
        return replace(RECIPES["imagenet"], epochs=90, edst_epochs=None, dense_epochs=None)
    return RECIPES.get(dataset, _SMALL)
