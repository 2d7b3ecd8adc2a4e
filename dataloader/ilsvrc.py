"""ImageNet (ILSVRC2012) from folders of photographs, or from records of tensorflow-datasets.

The folders are train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or a flat val/ next to the development
kit. Classes are the sorted wnids.
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
MEAN = (123.675, 116.28, 103.53)  # of the training images, in grey levels, RGB
STD = (58.395, 57.12, 57.375)
SUFFIXES = (".jpeg", ".jpg", ".png")
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = "meta.mat"
MEMORY_GIB = 8.0  # limit for the decoded images of a split that is read many times
MAX_NAMED = 5  # folders that one message names


def load(name="ILSVRC2012", data_path=None, *, skip_bad_images=False, memory_gib=MEMORY_GIB):
    """Returns ImageNet as a PhotographDataset, without decoding images.

    Args:
        name: name of the data set.
        data_path: folder with train/ and val/, or a folder that tensorflow-datasets prepared. If
            val/ has no folder per class, data_path or ILSVRC2012_devkit_t12/data in it must hold
            the development kit's ground truth and meta.mat.
        skip_bad_images: whether to read every file once and drop those that cannot be decoded.
        memory_gib: GiB of memory that the decoded images of a split may take.

    Raises:
        EkgError: a folder, the images of a class or the ground truth are missing or do not fit.
    """
    if data_path is None:
        raise EkgError(
            f"`dataset` {name}: cannot be downloaded; name the folder that holds train/ and val/ "
            "with `data_path`."
        )
    folder = Path(data_path)
    budget = int(memory_gib * 2**30)
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
    """Returns the PhotographDataset of a training split, sorted by class, and a test split."""
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
    """Returns (paths, labels) of a folder with one folder per class."""
    present = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    for kind, names in (
        ("no folder", set(classes) - present),
        ("a folder that train/ lacks,", present - set(classes)),
    ):
        if names:
            named = ", ".join(sorted(names)[:MAX_NAMED])
            if len(names) > MAX_NAMED:
                named += ", ..."
            raise EkgError(
                f"{folder}: holds {kind} {named}; train/ and val/ need the same {len(classes)} "
                "classes."
            )
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = _list_images(folder / name)
        if not images:
            raise EkgError(f"{folder / name}: holds no image; every class needs at least one.")
        paths += images
        labels += [label] * len(images)
    return paths, labels


def _list_images(folder):
    """Returns the sorted paths of the images in a folder."""
    entries = [
        entry
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    ]
    for entry in entries:
        is_plain = entry.is_file() or entry.is_dir()
        if not is_plain and os.path.exists(entry.path):  # a pipe or a device may never end
            raise EkgError(f"{entry.path}: is no plain file; remove it.")
    return sorted(entry.path for entry in entries)


def _list_flat(folder, classes):
    """Returns (paths, labels) of a flat val/, with labels from the development kit.

    The ground truth numbers the classes in the kit's own order, which meta.mat maps to wnids.
    """
    kits = [kit for kit in (folder, folder / DEVKIT) if (kit / GROUND_TRUTH).is_file()]
    if not kits:
        raise EkgError(
            f"{folder / 'val'}: holds no folders by class, and {GROUND_TRUTH} is neither in "
            f"{folder} nor in {folder / DEVKIT}; put the development kit there."
        )
    truth = kits[0] / GROUND_TRUTH
    numbers = truth.read_text(errors="replace").split()
    paths = _list_images(folder / "val")
    if len(numbers) != len(paths):
        raise EkgError(
            f"{truth}: has {len(numbers):,} lines, and {folder / 'val'} holds {len(paths):,} "
            "images; they must be as many."
        )
    wnids = _read_synsets(kits[0] / SYNSETS)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    for line, number in enumerate(numbers, 1):
        if wnids.get(number) not in label_of:
            raise EkgError(
                f"{truth}: line {line} is {number[:20]!r}, which {SYNSETS} and the folders of "
                "train/ do not know as a class."
            )
    return paths, [label_of[wnids[number]] for number in numbers]


def _read_synsets(path):
    """Returns {class number as text: wnid} from the development kit's meta.mat."""
    if not path.is_file():
        raise EkgError(
            f"{path}: missing; the development kit's ground truth cannot be understood without it."
        )
    try:
        from scipy import io as scipy_io
    except ImportError:
        raise EkgError(
            f"{path}: can only be read with SciPy, which is missing; install scipy with pip."
        ) from None
    try:
        synsets = scipy_io.loadmat(path, squeeze_me=True)["synsets"]
        return {
            str(int(number)): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])
        }
    except Exception as error:  # SciPy raises many types for a damaged file
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
