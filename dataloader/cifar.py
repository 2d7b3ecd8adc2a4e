"""CIFAR-10 and CIFAR-100 from the python batches: a folder, the official archive, or Keras'
download of it.
"""

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
MAX_ARCHIVE_BYTES = 2**29  # CIFAR's are of 180 million bytes
IMAGE_BYTES = 3 * IMAGE_SIZE**2
IMAGE_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a CIFAR data set comes from and how its images are normalised (statistics in grey
    levels, RGB order).
    """

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
    """Returns the Dataset CIFAR10 or CIFAR100.

    Args:
        name: one of SOURCES.
        data_path: folder with the python batches (or with the folder that the archive unpacks to),
            or the official .tar.gz; None downloads the archive to Keras' cache.

    Raises:
        EkgError: there is no such path, a batch is missing or damaged, or the download fails.
    """
    source = SOURCES[name]
    read = _open(source, _download(name, source) if data_path is None else Path(data_path))
    parts = [_split(source, *read(batch)) for batch in source.train]
    train = Split(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    return Dataset(
        name, source.num_classes, train, _split(source, *read(source.test)), source.mean, source.std
    )


def _download(name, source):
    try:
        return Path(
            keras.utils.get_file(Path(source.url).name, source.url, file_hash=source.sha256)
        )
    except Exception as error:  # Keras raises a bare Exception where the network fails
        reason = " ".join(str(error).split())
        raise EkgError(
            f"`dataset` {name}: the download failed ({reason[:200]}); get {source.url} on another "
            "machine and name it with `data_path`."
        ) from None


def _open(source, path):
    """Returns a function from a batch's name to (what to call it in errors, its bytes)."""
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
    except OSError as error:  # a name that is too long, a folder that may not be looked into
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
    """Returns {name: bytes} of the files in a .tar.gz, checksum verified; nothing is unpacked to
    disk.
    """
    try:
        with gzip.open(path) as file:
            content = io.BytesIO(
                file.read(MAX_ARCHIVE_BYTES + 1)
            )  # to the end, where the checksum is
        if content.getbuffer().nbytes > MAX_ARCHIVE_BYTES:
            raise EkgError(
                f"`data_path` {path}: unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes, so it is "
                "not CIFAR's archive; get it again."
            )
        with tarfile.open(fileobj=content) as archive:
            entries = [entry for entry in archive if entry.isfile()]
            sparse = [entry.name for entry in entries if entry.issparse()]
            if sparse:  # its few bytes may stand for any number
                raise EkgError(
                    f"`data_path` {path}: its file {sparse[0]!r} is sparse, so it is not CIFAR's "
                    "archive; get it again."
                )
            return {entry.name: archive.extractfile(entry).read() for entry in entries}
    except EkgError:  # a ValueError, too
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise EkgError(
            f"`data_path` {path}: not a readable .tar.gz ({error}); get it again."
        ) from None


def _split(source, name, data):
    batch = utils.parse_pickle(data, name, encoding="bytes")
    batch = batch if isinstance(batch, dict) else {}
    images, labels = batch.get(b"data"), batch.get(source.label_key)
    if (
        not isinstance(images, np.ndarray)
        or images.ndim != 2
        or images.shape[1] != IMAGE_BYTES
        or (images.dtype != np.uint8 or not len(images))
    ):
        raise EkgError(
            f"{name}: not a CIFAR batch: its data must be uint8 [number, {IMAGE_BYTES}], number > "
            "0."
        )
    if (
        not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(type(label) is int and 0 <= label < source.num_classes for label in labels)
    ):
        raise EkgError(
            f"{name}: {source.label_key.decode()} must be {len(images)} numbers from 0 to "
            f"{source.num_classes - 1}; is it the batch of another data set?"
        )
    images = images.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), np.array(labels, np.int32))
