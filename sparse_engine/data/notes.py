"""What is worth a line about a data set that can be used, but perhaps not as it was meant."""

import numpy as np
import torch
from torch import Tensor

from sparse_engine.data.catalog import DatasetInfo

# What a last batch that is not full may leave out before it is told of.
_SHARE_LEFT_OUT = 0.15
_NAMED = 5


def label_notes(train: Tensor, test: Tensor, info: DatasetInfo, source: str) -> list[str]:
    """Return a line for classes that have no training images; labels are int64 [N] on the CPU."""
    counts, tested = (torch.bincount(y, minlength=info.classes) for y in (train, test))
    unused = counts == 0
    if not bool(unused.any()):
        return []
    notes = []
    if unused.tolist() == [True] + [False] * (info.classes - 1) and not tested[0]:
        notes.append(
            f"{source}: labels run from 1 to {info.classes - 1} and class 0 has no images, so one "
            "output of the network is never right: subtract 1 from the labels"
        )
    else:
        empty = _classes(unused & (tested == 0), info)
        if empty:
            notes.append(
                f"{source}: {info.classes} classes, of which {empty} have no images; number the "
                "classes that there are 0, 1, 2, ..."
            )
    unseen = _classes(unused & (tested > 0), info)
    if unseen:
        notes.append(
            f"{source}: the test split has images of classes {unseen}, which training never sees"
        )
    return notes


def epoch_note(images: int, batch_size: int) -> str | None:
    """Return a line if whole batches leave out many of the training images in every epoch."""
    left = images % batch_size
    if left < _SHARE_LEFT_OUT * images:
        return None
    sizes = np.arange(batch_size // 2 + 1, batch_size + 1)
    better = int(sizes[::-1][(images % sizes[::-1]).argmin()])
    return (
        f"an epoch leaves out {left} of {images} training images ({left / images:.0%}), others "
        f"each time, for a batch is always full; --batch-size {better} leaves out "
        f"{images % better or 'none'}"
    )


def _classes(chosen: Tensor, info: DatasetInfo) -> str:
    labels = chosen.nonzero()[:, 0].tolist()
    words = ", ".join(info.class_in_words(label) for label in labels[:_NAMED])
    return f"{words}, ... ({len(labels)} in all)" if len(labels) > _NAMED else words
