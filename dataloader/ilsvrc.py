"""ImageNet (ILSVRC2012) from its folders of photographs, or from records that tensorflow-datasets
prepared.

    train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or a flat val/ with the files of the development kit
    beside it.

Classes are the sorted wnids.
"""

import logging
import os
from pathlib import Path

import numpy as np

from dataloader import photographs, records
from ekg.data.dataset import mixed_order
from ekg.errors import EkgError
from ekg.process.progress import progress_bar

logger = logging.getLogger(__name__)

IMAGE_SHAPE = photographs.IMAGE_SHAPE
MEAN = (123.675, 116.28, 103.53)  # of the training images, grey levels, RGB
STD = (58.395, 57.12, 57.375)
SUFFIXES = (".jpeg", ".jpg", ".png")
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
GROUND_TRUTH, SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
MEMORY_GIB = (
    8.0  # images of a split that is read again and again are kept decoded if they take no more
)
MAX_NAMED = 5  # folders named in one message


def load(name="ILSVRC2012", data_path=None, *, skip_bad_images=False, memory_gib=MEMORY_GIB):
    """Returns ImageNet as a PhotographDataset; no image is decoded yet.

    Args:
        name: what to call the data set.
        data_path: folder with train/ and val/, or one that tensorflow-datasets prepared. Where val/
            has no folders by class, data_path, or ILSVRC2012_devkit_t12/data in it, holds the
            development kit's ground truth and meta.mat.
        skip_bad_images: read every file once and leave out those that cannot be decoded.
        memory_gib: decoded images of a split that may be kept in memory.

    Raises:
        EkgError: data_path, a folder, a class's images or the ground truth is missing or does not
            fit.
    """
    if data_path is None:
        raise EkgError(
            f"`dataset` {name}: cannot be downloaded; name the folder that holds train/ and val/ "
            "with `data_path`."
        )
    folder, budget = Path(data_path), int(memory_gib * 2**30)
    if records.is_prepared(folder):
        return _make_dataset(name, *records.load(folder, budget), folder, skip_bad_images)
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise EkgError(
                f"`data_path` {folder}: holds no folder {split}/; it must hold train/<wnid>/ and "
                "val/."
            )
    try:
        classes = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
        if not classes:
            raise EkgError(
                f"{folder / 'train'}: holds no folders; each class needs one, named by its wnid."
            )
        train = _list_classes(folder / "train", classes)
        has_folders = any(entry.is_dir() for entry in os.scandir(folder / "val"))
        val = _list_classes(folder / "val", classes) if has_folders else _list_flat(folder, classes)
    except OSError as error:
        raise EkgError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    splits = [
        photographs.FileSplit(
            np.array([os.fsencode(path) for path in paths]), np.array(labels, np.int32), budget
        )
        for paths, labels in (train, val)
    ]
    return _make_dataset(name, classes, splits, folder, skip_bad_images)


def _make_dataset(name, classes, splits, folder, skip_bad_images):
    """Returns the PhotographDataset of (training split, test split); training images come class by
    class.
    """
    if skip_bad_images:
        splits = [
            _without_damaged(split, folder / part) for split, part in zip(splits, ("train", "val"))
        ]
    train, test = splits
    for label in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0):
        raise EkgError(
            f"{folder}: there is no training image of the class {classes[label]} that can be used."
        )
    if not len(test):
        raise EkgError(f"{folder}: there is no validation image that can be used.")
    train = train.take(mixed_order(train.labels))
    return photographs.PhotographDataset(name, len(classes), train, test, MEAN, STD)


def _list_classes(folder, classes):
    """Returns (paths, labels) of a folder with one folder for each class."""
    there = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    for kind, names in (
        ("no folder", set(classes) - there),
        ("a folder that train/ lacks,", there - set(classes)),
    ):
        if names:
            named = ", ".join(sorted(names)[:MAX_NAMED]) + (
                ", ..." if len(names) > MAX_NAMED else ""
            )
            raise EkgError(
                f"{folder}: holds {kind} {named}; train/ and val/ need the same {len(classes)} "
                "classes."
            )
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = _list_images(folder / name)
        if not images:
            raise EkgError(f"{folder / name}: holds no image; every class needs one at least.")
        paths += images
        labels += [label] * len(images)
    return paths, labels


def _list_images(folder):
    found = [
        entry
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    ]
    special = [
        entry.path
        for entry in found
        if not entry.is_file() and not entry.is_dir() and os.path.exists(entry.path)
    ]
    if special:  # a pipe or a device, which may never end
        raise EkgError(f"{special[0]}: is no plain file; remove it.")
    return sorted(entry.path for entry in found)


def _list_flat(folder, classes):
    """Returns (paths, labels) of a val/ without folders, by the files of the development kit.

    The ground truth numbers the classes in the kit's own order, which is not that of the wnids:
    meta.mat tells it.
    """
    places = [place for place in (folder, folder / DEVKIT) if (place / GROUND_TRUTH).is_file()]
    if not places:
        raise EkgError(
            f"{folder / 'val'}: holds no folders by class, and {GROUND_TRUTH} is neither in "
            f"{folder} nor in {folder / DEVKIT}; put the development kit there."
        )
    truth = places[0] / GROUND_TRUTH
    numbers, paths = truth.read_text(errors="replace").split(), _list_images(folder / "val")
    if len(numbers) != len(paths):
        raise EkgError(
            f"{truth}: has {len(numbers):,} lines, and {folder / 'val'} holds {len(paths):,} "
            "images; they must be as many."
        )
    wnids = _read_synsets(places[0] / SYNSETS)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    for line, number in enumerate(numbers, 1):
        if wnids.get(number) not in label_of:
            raise EkgError(
                f"{truth}: line {line} is {number[:20]!r}, which {SYNSETS} and the folders of "
                "train/ do not know as a class."
            )
    return paths, [label_of[wnids[number]] for number in numbers]


def _read_synsets(path):
    """Returns {class number as text: wnid} of the development kit's meta.mat."""
    if not path.is_file():
        raise EkgError(
            f"{path}: missing; the development kit's ground truth cannot be understood without it."
        )
    try:
        from scipy import io as scipy_io
    except ImportError:
        raise EkgError(
            f"{path}: can be read by SciPy alone, which is missing; install scipy with pip."
        ) from None
    try:
        synsets = scipy_io.loadmat(path, squeeze_me=True)["synsets"]
        return {
            str(int(number)): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])
        }
    except Exception as error:  # SciPy raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:160]
        raise EkgError(
            f"{path}: cannot be read as the development kit's class list ({reason})."
        ) from None


def _without_damaged(split, folder):
    with progress_bar(f"check {folder.name}", len(split), "image") as progress:
        damaged = split.find_damaged(progress)
    for index in damaged:
        logger.warning("left out: %s", split.name(index))
    logger.info(
        "%s: %d of %d images left out, as they cannot be decoded", folder, len(damaged), len(split)
    )
    return split.take(np.setdiff1d(np.arange(len(split)), damaged))
