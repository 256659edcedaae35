"""How a run's images are made ready, where its user says otherwise than the data set. No torch."""

from dataclasses import dataclass, replace

from sparse_engine.data.catalog import FOLDER_PREFIX, TABLE, DatasetInfo
from sparse_engine.errors import InputError

ON_OFF = "on|off"
_ONLY_FOLDERS = ("image_size", "crop_scale")


@dataclass(frozen=True)
class Preparation:
    """The settings of the same names; None is what the data set itself says.

    image_size: side in pixels of the square that is cut out of a picture of an image folder.
    crop_scale: smallest share of such a picture's area that a training crop shows.
    augmentation, flip: "on" or "off".
    mean, std: numbers by channel, "0.5,0.5,0.5", or one for all, of pixels scaled to [0, 1].
    """

    image_size: int | None = None
    crop_scale: float | None = None
    augmentation: str = "on"
    flip: str | None = None
    mean: str | None = None
    std: str | None = None

    def check(self, name: str, is_folder: bool | None = None) -> None:
        """Raise InputError for settings that contradict each other, or that a data set has not.

        `is_folder` says whether its images are files in a folder; None: as its name tells.
        """
        if is_folder is None:
            is_folder = name.startswith(FOLDER_PREFIX) or getattr(TABLE.get(name), "kind", "") == (
                "folder"
            )
        for setting in _ONLY_FOLDERS:
            if getattr(self, setting) is not None and not is_folder:
                raise InputError(
                    f"--{setting.replace('_', '-')} is for image folders, and the images of "
                    f"'{name}' are arrays of one size; leave it out"
                )
        if self.augmentation == "off" and (self.crop_scale is not None or self.flip == "on"):
            flag = "--flip on" if self.flip == "on" else "--crop-scale"
            raise InputError(f"{flag} changes training images, and --augmentation is off")
        for flag, text, low, high in (("--mean", self.mean, 0, 1), ("--std", self.std, 1e-6, 1e6)):
            for number in _numbers(flag, text):
                if not low <= number <= high:
                    raise InputError(
                        f"{flag} is of pixels scaled to [0, 1], found {number:g}; "
                        f"give numbers {'from 0 to 1' if flag == '--mean' else 'above 0'}"
                    )

    def applied(self, info: DatasetInfo) -> DatasetInfo:
        """Return a data set's conventions with these in place of its own.

        Raises:
            InputError: as check, and for another number of channels than the images have.
        """
        if self == Preparation():
            return info
        self.check(info.name, info.kind == "folder")
        changes = {"augment": self.augmentation == "on"}
        if self.image_size is not None:
            changes |= {"height": self.image_size, "width": self.image_size}
        if self.crop_scale is not None:
            changes["crop_scale"] = self.crop_scale
        if self.flip is not None:
            changes["flip"] = self.flip == "on"
        for setting in ("mean", "std"):
            numbers = _numbers(f"--{setting}", getattr(self, setting))
            if len(numbers) not in (0, 1, info.channels):
                raise InputError(
                    f"--{setting} has {len(numbers)} numbers, and the images of '{info.name}' "
                    f"{info.channels} channels; give a number for each, or one for all"
                )
            if numbers:
                changes[setting] = numbers * (info.channels if len(numbers) == 1 else 1)
        return replace(info, **changes)


def _numbers(flag: str, text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{flag} takes numbers such as 0.5 or 0.49,0.48,0.45, found '{text}'"
        ) from None
