"""Folders of small pictures that each test writes; Pillow is the oracle of decoding and
resizing.
"""

import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import io as scipy_io

import dataloader
from dataloader import ilsvrc, photographs
from ekg.data import augment
from ekg.data.dataset import Split, mixed_order
from ekg.errors import EkgError

CLASSES = ("n01440764", "n02101006", "n09193705")


def picture(seed, height=300, width=400):
    """A smooth random picture, uint8 [height, width, 3]; JPEG changes it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write(path, seed, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).convert(options.get("mode", "RGB")).save(
        path, options.get("format", "JPEG"), quality=95
    )


@pytest.fixture
def folder(tmp_path):
    """Four training pictures and two validation pictures of each class."""
    for label, wnid in enumerate(CLASSES):
        for i in range(4):
            write(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG", 10 * label + i)
        for i in range(2):
            write(tmp_path / "val" / wnid / f"val_{2 * label + i:08d}.JPEG", 10 * label + 5 + i)
    return tmp_path


def load(folder, **options):
    return dataloader.load("ILSVRC2012", folder, **options)


def names(split):
    return [os.path.basename(os.fsdecode(file)) for file in split.files]


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("size", [(300, 400), (500, 333), (256, 256), (120, 90)])
def test_the_evaluation_view_equals_pillows(tmp_path, size):
    Image.fromarray(picture(1, *size)).save(tmp_path / "a.png")
    view = photographs.evaluation_view(tf.io.read_file(str(tmp_path / "a.png"))).numpy()
    height, width = (side * 256 // min(size) for side in size)
    resized = Image.fromarray(picture(1, *size)).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 224) // 2, (height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    assert view.shape == (224, 224, 3) and view.dtype == np.uint8
    assert np.abs(view - expected).max() <= 1


def test_windows_have_the_areas_and_ratios_asked_for():
    shape = tf.constant([375, 500, 3])
    windows = np.array(
        [photographs.sample_window(shape, tf.constant([3, i], tf.int64)) for i in range(300)]
    )
    top, left, height, width = windows.T
    area, ratio = height * width / (375 * 500), width / height
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + height <= 375).all()
        and (left + width <= 500).all()
    )
    assert area.min() > 0.075 and area.max() <= 1 and area.min() < 0.15 and area.max() > 0.8
    assert ratio.min() > 0.72 and ratio.max() < 1.37 and ratio.min() < 0.8 and ratio.max() > 1.25


def test_a_crop_is_the_window_of_the_whole_picture(tmp_path):
    """Decoded only inside the window, or cut out of the picture that was decoded whole."""
    write(tmp_path / "a.JPEG", 3)
    contents = tf.io.read_file(str(tmp_path / "a.JPEG"))
    whole = tf.io.decode_jpeg(contents).numpy()
    for i in range(4):
        key = tf.constant([5, i], tf.int64)
        top, left, height, width = photographs.sample_window(tf.constant(whole.shape), key).numpy()
        expected = tf.image.resize(
            whole[top : top + height, left : left + width], (224, 224)
        ).numpy()
        assert (
            np.abs(photographs.random_view(contents, key).numpy() - expected).max() < 5
        )  # chroma at the borders
        assert np.abs(photographs.random_view(contents, key).numpy() - expected).mean() < 0.5
        Image.fromarray(whole).save(tmp_path / "a.png")
        other = photographs.random_view(tf.io.read_file(str(tmp_path / "a.png")), key).numpy()
        assert np.abs(other - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("options", "colour"),
    [
        ({"mode": "L"}, False),
        ({"mode": "CMYK"}, True),
        ({"format": "PNG"}, True),
        ({"mode": "L", "format": "PNG"}, False),
    ],
)
def test_unusual_files_decode(folder, options, colour):
    """Grey-scale and CMYK pictures, and PNG files that are called JPEG, as ILSVRC2012 has them."""
    write(folder / "train" / CLASSES[0] / f"{CLASSES[0]}_2.JPEG", 2, **options)
    data = load(folder)
    index = names(data.train).index(f"{CLASSES[0]}_2.JPEG")
    image = data.train.read([index])[0].astype(int)
    usual = photographs.evaluation_view(tf.io.encode_png(picture(2))).numpy().astype(int)
    expected = usual if colour else (usual @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(image - expected).max() < 12 and np.abs(image - expected).mean() < 2
    view = next(data.train.stream_views([[index]], 2, (0, 0)))
    assert view.shape == (1, 2, 224, 224, 3) and 20 < view.mean() < 235


def test_fine_tuning_views_differ_from_crops_by_flip_and_colour(folder):
    data = load(folder)
    batch = next(data.epoch(4, seed=1, epoch=0, num_views=2))
    assert batch["images"].shape == (4, 2, 224, 224, 3) and batch["images"].dtype == np.uint8
    assert batch["draws"].shape == (4, 2, augment.NUM_DRAWS)
    flip = batch["draws"][:, 1, 3] >= 0.5
    crop = batch["images"][:, 1].astype(np.float32)
    crop[flip] = crop[flip, :, ::-1]
    normalised = (crop - ilsvrc.MEAN) / ilsvrc.STD
    np.testing.assert_allclose(data._view(batch, 1, use_colour=False), normalised, atol=1e-4)
    np.testing.assert_allclose(data.plain_view(batch), data._view(batch, 0, use_colour=False))
    coloured = data.fine_tune_view(batch, 1).numpy()
    assert 0.005 < np.abs(coloured - normalised).mean() < 0.3


# ---------------------------------------------------------------- order


def test_views_are_keyed_by_seed_epoch_and_image(folder):
    data = load(folder)

    def crops(batch_size, seed=4, epoch=2, num_views=2):
        return {
            index: images
            for batch in data.epoch(batch_size, seed, epoch, num_views)
            for index, images in zip(batch["index"], batch["images"])
        }

    first, again = crops(6), crops(4)
    assert set(first) == set(again) == set(range(12))
    for index in first:
        np.testing.assert_array_equal(first[index], again[index])
        assert (first[index][0] != first[index][1]).any()
    for other in (crops(6, epoch=3), crops(6, seed=5)):
        assert all((first[index] != other[index]).any() for index in first)


def test_an_epoch_holds_every_image_once_with_its_label(folder):
    data = load(folder)
    seen = []
    for batch in data.epoch(4, seed=0, epoch=0):
        np.testing.assert_array_equal(batch["labels"], data.train.labels[batch["index"]])
        np.testing.assert_array_equal(batch["images"], data.train.read(batch["index"]))
        seen += list(batch["index"])
    assert sorted(seen) == list(range(12)) and seen != sorted(seen)


def test_labels_follow_the_sorted_wnids_and_classes_are_mixed(folder):
    data = load(folder)
    assert data.num_classes == 3 and len(data.train) == 12 and len(data.test) == 6
    for split in (data.train, data.test):
        for file, label in zip(split.files, split.labels):
            assert os.path.basename(os.path.dirname(os.fsdecode(file))) == CLASSES[label]
    assert list(data.train.labels) != sorted(data.train.labels)
    for label, wnid in enumerate(CLASSES):  # each class keeps the order of its names
        of_class = [
            name
            for name, its_label in zip(names(data.train), data.train.labels)
            if its_label == label
        ]
        assert of_class == [f"{wnid}_{i}.JPEG" for i in range(4)]
    assert sorted(names(data.last_of_each_class(1, seed=0))) == [
        f"{wnid}_3.JPEG" for wnid in CLASSES
    ]
    assert sorted(names(data.first_of_each_class(1, seed=0))) == [
        f"{wnid}_0.JPEG" for wnid in CLASSES
    ]


def test_every_stretch_of_the_order_holds_all_classes():
    labels = np.repeat(np.arange(20), 50)
    mixed = labels[mixed_order(labels)]
    assert sorted(mixed_order(labels)) == list(range(1000))
    assert all(len(set(mixed[start : start + 100])) == 20 for start in range(0, 1000, 100))


def test_batches_of_uneven_sizes_hold_the_right_images(folder):
    split = load(folder).train
    batches = [np.array([0, 5, 7]), np.array([2]), np.array([11, 11, 1, 3])]
    for indices, images in zip(batches, split.stream(batches)):
        np.testing.assert_array_equal(
            images, np.concatenate([split.read([index]) for index in indices])
        )


def test_a_split_is_decoded_into_memory_only_within_the_budget(folder):
    small, large = (
        load(folder, memory_gib=12 * 224 * 224 * 3 / 2**30 - missing).train.in_memory()
        for missing in (0, 1e-9)
    )
    assert isinstance(small, Split) and isinstance(large, photographs.FileSplit)
    np.testing.assert_array_equal(small.images, large.read(np.arange(12)))
    np.testing.assert_array_equal(small.labels, large.labels)


# ---------------------------------------------------------------- the development kit


def make_flat(folder, numbers, wnids=("n09193705", "n01440764", "n02101006"), place="."):
    """Moves the validation pictures into a flat folder; the kit's numbers are not in the order of
    the wnids.
    """
    for file in sorted((folder / "val").glob("*/*")):
        file.rename(folder / "val" / file.name)
    for wnid in CLASSES:
        (folder / "val" / wnid).rmdir()
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / ilsvrc.GROUND_TRUTH).write_text("".join(f"{number}\n" for number in numbers))
    if wnids:
        synsets = np.array(
            [(i + 1, wnid) for i, wnid in enumerate(wnids)],
            [("ILSVRC2012_ID", float), ("WNID", object)],
        )
        scipy_io.savemat(folder / place / ilsvrc.SYNSETS, {"synsets": synsets})


@pytest.mark.parametrize("place", [".", "ILSVRC2012_devkit_t12/data"])
def test_a_flat_folder_takes_its_labels_from_the_development_kit(folder, place):
    make_flat(folder, [3, 1, 1, 2, 2, 3], place=place)
    data = load(folder)
    assert names(data.test) == [f"val_{i:08d}.JPEG" for i in range(6)]
    assert [CLASSES[label] for label in data.test.labels] == [
        "n02101006",
        "n09193705",
        "n09193705",
        "n01440764",
        "n01440764",
        "n02101006",
    ]


@pytest.mark.parametrize(
    ("numbers", "wnids", "message"),
    [
        ([1, 2, 3, 1, 2], CLASSES, "ground_truth.txt: has 5 lines, and .*val holds 6 images"),
        (
            [1, 2, 3, 1, 2, 4],
            CLASSES,
            "line 6 is '4', which meta.mat and the folders of train/ do not know",
        ),
        ([1, 2, 3, 1, 2, 3], ("n1", *CLASSES[1:]), "line 1 is '1'"),
        (
            [1, 2, 3, 1, 2, 3],
            (),
            "meta.mat: missing; the development kit's ground truth cannot be understood",
        ),
    ],
)
def test_a_ground_truth_file_that_does_not_match_is_named(folder, numbers, wnids, message):
    make_flat(folder, numbers, wnids)
    with pytest.raises(EkgError, match=message):
        load(folder)


def test_a_damaged_class_list_is_named(folder):
    make_flat(folder, [1, 2, 3, 1, 2, 3])
    (folder / ilsvrc.SYNSETS).write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(
        EkgError, match="meta.mat: cannot be read as the development kit's class list"
    ):
        load(folder)


# ---------------------------------------------------------------- mistakes


def empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train").rename(folder / "training"), "holds no folder train/"),
        (lambda folder: (folder / "val").rename(folder / "validation"), "holds no folder val/"),
        (
            lambda folder: empty(folder / "train" / CLASSES[1]),
            "n02101006: holds no image; every class needs at least one",
        ),
        (
            lambda folder: empty(folder / "val" / CLASSES[1]),
            "n02101006: holds no image; every class needs at least one",
        ),
        (
            lambda folder: (folder / "val" / CLASSES[0]).rename(folder / "val" / "n5"),
            "val: holds no folder n01440764",
        ),
        (
            lambda folder: (folder / "val" / "n5").mkdir(),
            "val: holds a folder that train/ lacks, n5",
        ),
        (
            lambda folder: [
                path.rename(folder / path.name) for path in (folder / "train").iterdir()
            ],
            "train: holds no folders",
        ),
        (
            lambda folder: [path.rename(folder / path.name) for path in (folder / "val").iterdir()],
            "ILSVRC2012_validation_ground_truth.txt is neither in",
        ),
    ],
)
def test_folders_that_do_not_match_are_named(folder, damage, message):
    damage(folder)
    with pytest.raises(EkgError, match=message):
        load(folder)


def test_more_images_of_a_class_than_there_are_cannot_be_asked_for(folder):
    with pytest.raises(
        EkgError, match="5 images of each class are asked for, and the largest class of ILSVRC.* 4;"
    ):
        load(folder).last_of_each_class(5, seed=0)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (truncate, "Invalid JPEG data"),
        (lambda path: path.write_text("text"), "Unknown image file format"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_a_damaged_image_is_named_by_every_reader(folder, damage, reason):
    data = load(folder)
    name = f"{CLASSES[1]}_2.JPEG"
    damage(folder / "train" / CLASSES[1] / name)
    message = f"{name}: cannot be read as an image \\({reason}.* or set `skip_bad_images`"
    for read in (
        lambda: data.train.read(np.arange(12)),
        lambda: list(data.epoch(4, 0, 0)),
        lambda: data.train.in_memory(),
    ):
        with pytest.raises(EkgError, match=message):
            read()


@pytest.mark.parametrize("num_views", [1, 2])
def test_a_file_that_is_no_image_is_named_by_random_views_too(folder, num_views):
    data = load(folder)
    (folder / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG").write_bytes(b"")
    with pytest.raises(EkgError, match=f"{CLASSES[1]}_2.JPEG: cannot be read"):
        list(data.epoch(4, 0, 0, num_views))


def test_damaged_images_are_left_out_and_counted_if_asked(folder, caplog):
    truncate(folder / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG")
    (folder / "val" / CLASSES[0] / "val_00000001.JPEG").write_bytes(b"")
    with caplog.at_level("INFO"):
        data = load(folder, skip_bad_images=True)
    assert len(data.train) == 11 and len(data.test) == 5
    assert f"{CLASSES[1]}_2.JPEG" not in names(data.train) and "val_00000001.JPEG" not in names(
        data.test
    )
    assert sum(len(batch["index"]) for batch in data.epoch(1, 0, 0, 1)) == 11
    assert (
        "train: 1 of 12 images left out" in caplog.text
        and f"left out: {folder}/train" in caplog.text
    )


def test_a_class_with_only_damaged_images_is_named(folder):
    for file in (folder / "train" / CLASSES[1]).iterdir():
        file.write_bytes(b"")
    with pytest.raises(
        EkgError, match="there is no training image of the class n02101006 that can be used"
    ):
        load(folder, skip_bad_images=True)
