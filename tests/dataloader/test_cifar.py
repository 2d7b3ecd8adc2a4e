import io
import pickle
import tarfile

import keras
import numpy as np
import pytest

import dataloader
from ekg.errors import EkgError


def batch(count, label_key=b"labels", seed=0):
    rng = np.random.default_rng(seed)
    return {
        b"data": rng.integers(0, 256, (count, 3072)).astype(np.uint8),
        label_key: rng.integers(0, 10, count).tolist(),
        b"filenames": [b"a.png"] * count,
    }


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(batch(4, seed=i), protocol=2))
    return folder


def test_a_folder_is_read_in_order_and_layout(folder):
    data = dataloader.load("CIFAR10", folder.parent)
    assert data.train.images.shape == (20, 32, 32, 3) and data.test.images.shape == (4, 32, 32, 3)
    third = batch(4, seed=2)
    np.testing.assert_array_equal(
        data.train.images[8, 5, 7], third[b"data"][0].reshape(3, 32, 32)[:, 5, 7]
    )
    assert data.train.labels[8:12].tolist() == third[b"labels"]
    np.testing.assert_array_equal(
        dataloader.load("CIFAR10", folder).train.images, data.train.images
    )


def test_the_archive_is_read_without_unpacking(folder, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py")
    before = sorted(tmp_path.rglob("*"))
    data = dataloader.load("CIFAR10", archive)
    np.testing.assert_array_equal(
        data.train.images, dataloader.load("CIFAR10", folder).train.images
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def fine_folder(tmp_path):
    """CIFAR-100's python batches: a coarse and a fine label for each image."""
    for name in ("train", "test"):
        content = batch(6, b"fine_labels") | {b"coarse_labels": [0] * 6}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def test_cifar100_takes_the_fine_labels(fine_folder):
    data = dataloader.load("CIFAR100", fine_folder)
    assert data.num_classes == 100 and data.train.labels.tolist() == batch(6)[b"labels"]


def test_images_are_normalised_as_for_published_weights(folder, fine_folder):
    for data, mean, std in (
        (dataloader.load("CIFAR10", folder), (113.9, 123.0, 125.3), (66.7, 62.1, 63.0)),
        (dataloader.load("CIFAR100", fine_folder), (112, 124, 129), (70, 65, 68)),
    ):
        images = data.test.images
        np.testing.assert_allclose(
            data.normalise(images), (images - np.array(mean)) / std, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "nowhere: no such folder or file"),
        (lambda path: path, "data_batch_1, .*test_batch not found there"),
    ],
)
def test_a_wrong_path_is_named(tmp_path, make, message):
    with pytest.raises(EkgError, match=message):
        dataloader.load("CIFAR10", make(tmp_path))


def test_a_truncated_batch_is_named(folder):
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(EkgError, match="data_batch_3: not a readable pickle"):
        dataloader.load("CIFAR10", folder)


@pytest.mark.parametrize(
    "content",
    [
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
        {b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        [1, 2],
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]},
    ],
)
def test_a_pickle_that_is_no_batch_is_named(folder, content):
    (folder / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(EkgError, match="data_batch_2"):
        dataloader.load("CIFAR10", folder)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_bad_archive_is_named(tmp_path, content):
    archive = tmp_path / "x.tar.gz"
    if content is None:
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("other"), io.BytesIO())
    else:
        archive.write_bytes(content)
    with pytest.raises(EkgError, match="x.tar.gz"):
        dataloader.load("CIFAR10", archive)


def test_a_flipped_bit_in_the_archive_is_noticed_or_harmless(folder, tmp_path):
    """Bits of the header and padding of a .gz mean nothing."""
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py")
    good = archive.read_bytes()
    expected, noticed = dataloader.load("CIFAR10", archive).train.images, 0
    for place in np.linspace(0, len(good) - 1, 40).astype(int):
        archive.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        try:
            np.testing.assert_array_equal(
                dataloader.load("CIFAR10", archive).train.images, expected
            )
        except EkgError as error:
            assert "x.tar.gz: not a readable .tar.gz" in str(error)
            noticed += 1
    assert noticed > 30


def test_a_failed_download_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise Exception("URL fetch failure: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(EkgError, match="download failed .*Name or service.*`data_path`"):
        dataloader.load("CIFAR10")


def test_digits_are_real_images_of_every_class():
    data = dataloader.load("DIGITS")
    assert len(data.train) == 1438 and len(data.test) == 359 and data.image_shape == (32, 32, 3)
    assert (
        np.bincount(data.train.labels, minlength=10).min() == 127 and data.train.images.max() == 255
    )
    normalised = data.normalise(data.train.images).numpy()
    assert abs(normalised.mean()) < 1e-3 and abs(normalised.std() - 1) < 1e-3


def test_digits_have_no_path():
    with pytest.raises(EkgError, match="leave `data_path` out"):
        dataloader.load("DIGITS", "somewhere")
