"""Batches of image files, decoded and augmented by worker processes."""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from sparse_engine.data.arrays import ImageFiles
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.class_folders import list_classes
from sparse_engine.data.image_file import read_image
from sparse_engine.data.loader import Normaliser, count_steps, seeded_generator
from sparse_engine.data.worker_processes import stream
from sparse_engine.errors import InputError
from sparse_engine.paths import expanded

# Images are evaluated on the centre of a picture this much larger, as the ImageNet papers do.
_EVALUATION_MARGIN = 256 / 224


def find_images(root: Path) -> tuple[ImageFiles, ImageFiles, list[str]]:
    """List ROOT/train and ROOT/val (or ROOT/test): (training, test, names of the classes).

    Each holds one folder of images a class. Raises InputError for a missing or empty folder and
    for splits whose classes differ.
    """
    root = Path(expanded(str(root)))
    train, train_classes = _list_split(root, ("train",))
    test, test_classes = _list_split(root, ("val", "test"))
    if train_classes != test_classes:
        odd = sorted(set(train_classes) ^ set(test_classes))[0]
        raise InputError(
            f"{root}: class folder '{odd}' is in one split only; give both splits the same classes"
        )
    return train, test, train_classes


def find_split(folder: Path) -> tuple[ImageFiles, list[str]]:
    """List a folder that holds one folder of images a class: (files, names of the classes).

    Raises InputError for a missing or empty folder.
    """
    folder = folder.resolve()
    return _list_split(folder.parent, (folder.name,))


def _list_split(root: Path, names: tuple[str, ...]) -> tuple[ImageFiles, list[str]]:
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{root} has no folder '{' or '.join(names)}'; put one folder of images a class there"
        )
    paths, labels, classes = list_classes(folder)
    return ImageFiles(tuple(paths), torch.tensor(labels)), classes


class FolderLoader:
    """Training batches of image files, with the interface of `ArrayLoader`.

    Consecutive steps stream from `workers` processes (0: this process); another step starts the
    stream anew at its place. Order, crops and flips are a pure function of (seed, step).
    """

    def __init__(
        self,
        files: ImageFiles,
        info: DatasetInfo,
        batch_size: int,
        device: torch.device | str,
        *,
        seed: int,
        augment: bool = True,
        workers: int = 4,
    ) -> None:
        self.steps_per_epoch = count_steps(len(files), batch_size)
        self.batch_size = batch_size
        self._device = torch.device(device)
        augment = augment and info.augment
        transform = training_transform(info) if augment else evaluation_transform(info)
        self._dataset = _DecodedFiles(files, transform)
        self._seed = seed
        self._workers = workers
        self._normalise = Normaliser(info, device)
        self._next_step, self._stream = 0, None
        self._share = slice(None)

    def of(self, share: slice) -> "FolderLoader":
        """Return a loader of some of each batch's images."""
        loader = copy.copy(self)
        loader._share, loader._stream = share, None
        return loader

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images float32 [B, C, H, W], normalised, and labels int64 [B] of a step from 0.

        Raises InputError for a file that cannot be decoded.
        """
        if self._stream is None or step != self._next_step:
            sizes = (len(self._dataset), self.batch_size, self.steps_per_epoch)
            sampler = _training_order(*sizes, self._seed, step, self._share)
            self._stream = _stream(self._dataset, sampler, self._device, self._workers)
        self._next_step = step + 1
        return _finish(next(self._stream), self._normalise, self._device)


def folder_evaluation_batches(
    files: ImageFiles,
    info: DatasetInfo,
    batch_size: int,
    device: torch.device | str,
    *,
    workers: int = 4,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised centre crops float32 [B, C, H, W] and labels int64 [B], in order.

    The last batch holds what is left. Raises InputError for a file that cannot be decoded.
    """
    device = torch.device(device)
    normalise = Normaliser(info, device)
    items = [(index, 0) for index in range(len(files))]
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    dataset = _DecodedFiles(files, evaluation_transform(info))
    for batch in _stream(dataset, batches, device, workers):
        yield _finish(batch, normalise, device)


def training_transform(info: DatasetInfo) -> Callable:
    """Return a random resized crop, and a flip where `info` allows it, to uint8 [3, H, W]."""
    from torchvision.transforms import v2

    flip = 0.5 if info.flip else 0.0
    size, scale = (info.height, info.width), (info.crop_scale, 1.0)
    crop = v2.RandomResizedCrop(size, scale=scale, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip), v2.PILToTensor()])


def evaluation_transform(info: DatasetInfo) -> Callable:
    """Return a resize to slightly more than needed and the centre crop, to uint8 [3, H, W]."""
    from torchvision.transforms import v2

    larger = [round(size * _EVALUATION_MARGIN) for size in (info.height, info.width)]
    resize = v2.Resize(max(larger), antialias=True)
    return v2.Compose([resize, v2.CenterCrop((info.height, info.width)), v2.PILToTensor()])


class _DecodedFiles(Dataset):
    """Images uint8 [3, H, W] and labels; an item is asked for with its index and a seed.

    The seed makes the augmentation independent of which worker draws it.
    """

    def __init__(self, files: ImageFiles, transform: Callable) -> None:
        self._files = files
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor] | InputError:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                image = read_image(self._files.paths[index], self._transform)
            # Returned: an error raised in a worker reaches the trainer as a printed traceback.
            except InputError as error:
                return error
        return image, self._files.labels[index]


def _training_order(
    images: int, batch_size: int, steps: int, seed: int, start: int, share: slice
) -> Iterator[list[tuple[int, int]]]:
    """Yield endless batches of (index, augmentation seed) from step `start` on."""
    first_epoch, place = divmod(start, steps)
    for epoch in count(first_epoch):
        generator = seeded_generator(seed, epoch)
        order = torch.randperm(images, generator=generator)
        seeds = torch.randint(2**62, (images,), generator=generator)
        for step in range(place, steps):
            part = slice(step * batch_size, (step + 1) * batch_size)
            own = (values[part][share].tolist() for values in (order, seeds))
            yield list(zip(*own, strict=True))
        place = 0


def _stream(dataset: Dataset, batches: Iterable, device: torch.device, workers: int) -> Iterator:
    return stream(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        # Its own generator: the default would draw from, and so change, the run's random numbers.
        generator=torch.Generator(),
    )


def _collate(items: list) -> list[Tensor] | InputError:
    broken = next((item for item in items if isinstance(item, InputError)), None)
    return default_collate(items) if broken is None else broken


def _finish(
    batch: list[Tensor] | InputError, normalise: Normaliser, device: torch.device
) -> tuple[Tensor, Tensor]:
    if isinstance(batch, InputError):
        raise batch
    images, labels = (part.to(device, non_blocking=True) for part in batch)
    return normalise(images), labels
