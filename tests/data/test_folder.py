"""Folders of images: listing, streaming in a reproducible order, and errors."""

import pytest
import torch
from image_folders import write_images
from PIL import Image
from torchvision.transforms import v2

from sparse_engine.data.folder import FolderLoader, folder_evaluation_batches
from sparse_engine.data.load import dataset_info, load_dataset
from sparse_engine.data.loader import split_validation
from sparse_engine.errors import InputError


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 1)
    return tmp_path


@pytest.fixture
def data(root):
    return load_dataset(f"imagefolder:{root}", None)


def loader(data, seed=0, workers=0, **changes):
    return FolderLoader(data.train, data.info, 4, "cpu", seed=seed, workers=workers, **changes)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_listing(root, data):
    info = data.info
    assert (info.classes, info.train_size, info.test_size) == (3, 9, 3)
    assert (info.height, info.width, info.kind) == (224, 224, "folder")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.paths[1] == str(root / "val" / "bee" / "0.png")
    assert dataset_info(f"imagefolder:{root}") == info


def test_test_folder_in_place_of_val(root):
    (root / "val").rename(root / "test")
    assert load_dataset(f"imagefolder:{root}", None).info.test_size == 3


def test_stream_is_a_pure_function_of_seed_and_step(data):
    stream = loader(data)
    assert stream.steps_per_epoch == 2
    batches = [stream.batch(step) for step in range(5)]
    assert batches[0][0].shape == (4, 3, 224, 224)
    jumping = loader(data)
    assert all(equal(jumping.batch(step), batches[step]) for step in (3, 4, 0, 2))
    assert not equal(loader(data, seed=1).batch(0), batches[0])


# Newer Pythons warn of any fork beside threads, which torch's own workers do on Linux.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_do_not_change_a_batch(data):
    stream = loader(data, workers=2)
    assert all(equal(stream.batch(step), loader(data).batch(step)) for step in (1, 2))


def test_stream_leaves_the_global_generator_alone(data):
    state = torch.get_rng_state()
    loader(data).batch(0)
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_is_the_normalised_centre(data):
    batches = list(folder_evaluation_batches(data.test, data.info, 2, "cpu", workers=0))
    assert [len(labels) for _, labels in batches] == [2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2]
    picture = Image.open(data.test.paths[0])
    window = v2.CenterCrop(224)(v2.Resize(256)(picture))
    expected = v2.functional.normalize(
        v2.functional.pil_to_tensor(window).float() / 255, data.info.mean, data.info.std
    )
    torch.testing.assert_close(batches[0][0][0], expected, rtol=1e-5, atol=1e-5)


def test_training_without_augmentation_takes_the_centre(data):
    images, labels = loader(data, augment=False).batch(0)
    again, _ = loader(data, augment=False).batch(0)
    assert torch.equal(images, again)
    centres = torch.cat(
        [b for b, _ in folder_evaluation_batches(data.train, data.info, 9, "cpu", workers=0)]
    )
    assert all(any(torch.equal(image, centre) for centre in centres) for image in images)
    assert labels.dtype == torch.int64


def test_validation_split_of_files(data):
    train, held_out = split_validation(data.train, 1 / 3, 0)
    assert held_out.labels.tolist() == [0, 1, 2]
    assert set(train.paths) | set(held_out.paths) == set(data.train.paths)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image(root, workers):
    path = root / "val" / "bee" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    data = load_dataset(f"imagefolder:{root}", None)
    with pytest.raises(InputError) as caught:
        list(folder_evaluation_batches(data.test, data.info, 3, "cpu", workers=workers))
    assert str(caught.value).startswith(f"{path} is not a readable image (")
    assert "\n" not in str(caught.value)


def test_batch_larger_than_the_folder(data):
    with pytest.raises(InputError, match="a batch of 10 cannot be drawn from 9 training images"):
        FolderLoader(data.train, data.info, 10, "cpu", seed=0, workers=0)


def test_missing_folders(tmp_path):
    with pytest.raises(InputError, match="has no folder 'train'; put one folder"):
        load_dataset(f"imagefolder:{tmp_path}", None)
    write_images(tmp_path / "train", 1)
    with pytest.raises(InputError, match="has no folder 'val or test'; put one folder"):
        load_dataset("imagenet", str(tmp_path))


def test_folders_that_disagree(root):
    write_images(root / "val", 1, ["dog"])
    with pytest.raises(InputError, match="class folder 'dog' is in one split only"):
        load_dataset(f"imagefolder:{root}", None)


def test_empty_folders(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"Couldn't find any class folder.*; put one folder"):
        load_dataset(f"imagefolder:{tmp_path}", None)
    (tmp_path / "train" / "ant").mkdir()
    with pytest.raises(InputError, match="no valid file for the classes ant"):
        load_dataset(f"imagefolder:{tmp_path}", None)


def test_imagenet_with_other_classes(root):
    with pytest.raises(InputError, match="expected 1000 class folders for imagenet, found 3"):
        load_dataset("imagenet", str(root))
