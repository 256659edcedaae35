"""Folders of small images, one a class."""

import numpy as np
from PIL import Image

GENERATOR = np.random.RandomState(0)
CLASSES = ("ant", "bee", "cat")


def write_images(folder, per_class, classes=CLASSES):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = GENERATOR.randint(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
