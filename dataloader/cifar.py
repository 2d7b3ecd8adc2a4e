"""CIFAR-10 and CIFAR-100 from the python batches: a folder, the official archive, or a download."""

import dataclasses
import gzip
import io
import tarfile
import zlib
from pathlib import Path

import keras
import numpy as np

import utils
from ekg.data.dataset import Dataset, Split
from ekg.errors import EkgError

IMAGE_SIZE = 32
MAX_ARCHIVE_BYTES = 2**29  # limit for the unpacked archive; CIFAR's have 180 million bytes
IMAGE_BYTES = 3 * IMAGE_SIZE**2
IMAGE_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)


@dataclasses.dataclass(frozen=True)
class _Source:
    """The files of a CIFAR data set, and statistics of its images in grey levels, RGB order."""

    num_classes: int
    folder: str
    train: tuple[str, ...]
    test: str
    label_key: bytes
    url: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


SOURCES = {
    "CIFAR10": _Source(
        10,
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        b"labels",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        (113.9, 123.0, 125.3),
        (66.7, 62.1, 63.0),
    ),
    "CIFAR100": _Source(
        100,
        "cifar-100-python",
        ("train",),
        "test",
        b"fine_labels",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        (112.0, 124.0, 129.0),
        (70.0, 65.0, 68.0),
    ),
}


def load(name, data_path=None):
    """Returns CIFAR10 or CIFAR100 as a Dataset.

    Args:
        name: one of SOURCES.
        data_path: folder with the python batches, or with the unpacked archive, or the official
            .tar.gz; None downloads the archive to Keras' cache.

    Raises:
        EkgError: there is no such path, a batch is missing or damaged, or the download fails.
    """
    source = SOURCES[name]
    path = _download(name, source) if data_path is None else Path(data_path)
    read = _open(source, path)
    parts = [_split(source, *read(batch)) for batch in source.train]
    train = Split(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    test = _split(source, *read(source.test))
    return Dataset(name, source.num_classes, train, test, source.mean, source.std)


def _download(name, source):
    try:
        file_name = Path(source.url).name
        return Path(keras.utils.get_file(file_name, source.url, file_hash=source.sha256))
    except Exception as error:  # Keras raises a bare Exception if the network fails
        reason = " ".join(str(error).split())
        raise EkgError(
            f"`dataset` {name}: the download failed ({reason[:200]}); get {source.url} on another "
            "machine and name it with `data_path`."
        ) from None


def _open(source, path):
    """Returns a function from the name of a batch to (its name in error messages, its bytes)."""
    try:
        if path.is_dir():
            folder = path / source.folder if (path / source.folder).is_dir() else path
            missing = [
                batch for batch in (*source.train, source.test) if not (folder / batch).is_file()
            ]
            if missing:
                raise EkgError(
                    f"`data_path` {path}: {', '.join(missing)} not found there; it must hold the "
                    f"python batches of {Path(source.url).name}."
                )
            return lambda batch: (folder / batch, (folder / batch).read_bytes())
        if not path.is_file():
            raise EkgError(
                f"`data_path` {path}: no such folder or file; name the folder with the python "
                f"batches, or {Path(source.url).name}."
            )
    except OSError as error:  # a name that is too long, a folder without permission
        raise EkgError(f"`data_path` {path}: cannot be read ({error.strerror}).") from None
    files = _read_archive(path)

    def member(batch):
        name = f"{source.folder}/{batch}"
        if name not in files:
            raise EkgError(
                f"`data_path` {path}: holds no file {name}; is it the archive of `dataset`?"
            )
        return f"{path}:{batch}", files[name]

    return member


def _read_archive(path):
    """Returns {name: bytes} of the files in a .tar.gz, after verifying its checksum, in memory."""
    try:
        with gzip.open(path) as file:
            # Reads to the end, where the checksum is.
            content = io.BytesIO(file.read(MAX_ARCHIVE_BYTES + 1))
        if content.getbuffer().nbytes > MAX_ARCHIVE_BYTES:
            raise EkgError(
                f"`data_path` {path}: unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes, so it is "
                "not CIFAR's archive; get it again."
            )
        with tarfile.open(fileobj=content) as archive:
            entries = [entry for entry in archive if entry.isfile()]
            sparse = [entry.name for entry in entries if entry.issparse()]
            if sparse:  # a few bytes may unpack to any number
                raise EkgError(
                    f"`data_path` {path}: its file {sparse[0]!r} is sparse, so it is not CIFAR's "
                    "archive; get it again."
                )
            return {entry.name: archive.extractfile(entry).read() for entry in entries}
    except EkgError:  # it is a ValueError, which is caught below
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise EkgError(
            f"`data_path` {path}: not a readable .tar.gz ({error}); get it again."
        ) from None


def _split(source, name, data):
    """Returns the Split in a pickled batch, after checking its images and labels."""
    batch = utils.parse_pickle(data, name, encoding="bytes")
    if not isinstance(batch, dict):
        batch = {}
    images = batch.get(b"data")
    labels = batch.get(source.label_key)
    is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not is_bytes or images.shape[1:] != (IMAGE_BYTES,) or not len(images):
        raise EkgError(
            f"{name}: not a CIFAR batch: its data must be uint8 [number, {IMAGE_BYTES}], number > "
            "0."
        )
    has_labels = isinstance(labels, list) and len(labels) == len(images)
    if not has_labels or not all(
        type(label) is int and 0 <= label < source.num_classes for label in labels
    ):
        raise EkgError(
            f"{name}: {source.label_key.decode()} must be {len(images)} numbers from 0 to "
            f"{source.num_classes - 1}; is it the batch of another data set?"
        )
    images = images.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), np.array(labels, np.int32))
