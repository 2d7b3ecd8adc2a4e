import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from dataloader.photographs import FileSplit
from ekg.data import headers, images
from ekg.errors import EkgError
from ekg.process.memory import peak_memory_mib
from ekg.process.progress import progress_bar
from tests.helpers.damage import mutate

IMAGE = np.random.default_rng(0).integers(0, 256, (13, 37, 3), np.uint8)


def png(width, height):
    """A PNG file that declares a size and holds hardly any pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_the_size_is_that_of_the_decoded_image(form):
    pillow = pytest.importorskip("PIL.Image")
    further = {"JPEG": {"progressive": True, "comment": b"x" * 300}, "WEBP": {"lossless": True}}
    for options in (
        {},
        further.get(form, {}),
        {"exif": b"Exif\0\0" + bytes(8)} if form == "WEBP" else {},
    ):
        buffer = io.BytesIO()
        pillow.fromarray(IMAGE).save(buffer, form, **options)
        assert headers.declared_size(buffer.getvalue()) == (13, 37)
        assert headers.problem_of(buffer.getvalue()) is None


def test_a_jpeg_of_tensorflow_is_read_too():
    assert headers.declared_size(tf.io.encode_jpeg(IMAGE).numpy()) == (13, 37)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BM",
        b"\xff\xd8",
        b"\xff\xd8\xff\xc0",
        b"\xff\xd8\xff\xe0\x00\x00" * 9,
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"text",
        b"\xff\xd8" + b"\xff" * 50,
    ],
)
def test_bytes_without_a_readable_size_are_left_to_the_decoder(data):
    assert headers.declared_size(data) is None and headers.problem_of(data) is None


def test_a_bomb_is_refused_by_its_header_and_one_pixel_is_an_image(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.png").write_bytes(tf.io.encode_png(IMAGE[:1, :1]).numpy())
    data, classes = images.load(tmp_path, (4, 4, 3))
    assert classes == ["a", "b"]
    np.testing.assert_array_equal(data.read([0]), np.broadcast_to(IMAGE[:1, :1], (1, 4, 4, 3)))
    (tmp_path / "b" / "bomb.png").write_bytes(png(20_000, 20_000))
    data, _ = images.load(tmp_path, (4, 4, 3))
    with pytest.raises(
        EkgError,
        match="bomb.png: is not decoded: it declares 20000 x 20000 pixels, more than 134,217,728",
    ):
        data.read([1])


def jpeg(width, height):
    """A JPEG file of a small image whose header declares another size."""
    data = tf.io.encode_jpeg(IMAGE).numpy()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def gif(width, height, frames=1, colours=True):
    """A GIF file whose screen is small and whose frames declare another size; they hold no
    pixels.
    """
    table = bytes(6)
    frame = (
        b"!\xf9\x04"
        + bytes(5)
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0x80 if colours else 0)
        + (table if colours else b"")
        + b"\x02\x01\x44\x00"
    )
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + table + frame * frames + b";"


def test_the_frames_of_a_gif_count_rather_than_its_screen():
    assert headers.declared_size(gif(12_000, 11_000)) == (11_000, 12_000)
    assert headers.declared_size(gif(500, 400, frames=3, colours=False)) == (1200, 500)
    assert (
        headers.problem_of(gif(1000, 1000, frames=200))
        and headers.problem_of(gif(1000, 1000, frames=20)) is None
    )
    for cut in range(len(gif(5, 5))):
        headers.problem_of(gif(5, 5)[:cut])


@pytest.mark.parametrize(
    "bomb",
    [png(20_000, 20_000), png(2**32 - 1, 2**32 - 1), jpeg(20_000, 20_000), gif(12_000, 12_000)],
)
def test_photographs_are_decoded_only_where_their_header_declares_few_pixels(tmp_path, bomb):
    good = [
        tf.io.encode_png(IMAGE).numpy(),
        tf.io.encode_jpeg(IMAGE).numpy(),
        tf.io.encode_png(IMAGE[:1, :1]).numpy(),
    ]
    for number, data in enumerate([*good, bomb]):
        (tmp_path / f"{number}.png").write_bytes(data)
    split = FileSplit(
        np.array([str(tmp_path / f"{i}.png").encode() for i in range(4)]), np.zeros(4, np.int32), 0
    )
    assert split.read(np.arange(3)).shape == (3, 224, 224, 3)
    with pytest.raises(
        EkgError,
        match=r"3.png: cannot be read as an image \(it declares \d+ x \d+ pixels, more than 134,",
    ):
        split.read(np.arange(4))
    with pytest.raises(EkgError, match="3.png: cannot be read"):
        list(split.stream_views([np.arange(4)], 2, (0, 0)))
    with progress_bar("read", 4, "image") as progress:
        assert split.find_damaged(progress).tolist() == [3]


def test_the_first_picture_of_an_animation_is_read(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pictures = [pillow.fromarray(np.full((6, 6, 3), level, np.uint8)) for level in (40, 200)]
    for name in "ab":
        (tmp_path / name).mkdir()
        pictures[0].save(tmp_path / name / "moves.gif", save_all=True, append_images=pictures[1:])
    data, _ = images.load(tmp_path, (6, 6, 3))
    np.testing.assert_allclose(data.read([0]), 40, atol=3)


@pytest.mark.parametrize(("width", "height"), [(1, 1000), (1000, 1), (3, 2000)])
def test_thin_photographs_are_judged_by_their_size_after_scaling(tmp_path, width, height):
    """A column of 1000 pixels would become 256 x 256,000 of them, 800 MB as float32."""
    (tmp_path / "thin.png").write_bytes(
        tf.io.encode_png(np.zeros((height, width, 3), np.uint8)).numpy()
    )
    split, before = (
        FileSplit(np.array([str(tmp_path / "thin.png").encode()]), np.zeros(1, np.int32), 0),
        peak_memory_mib(),
    )
    message = (
        rf"its {width} x {height} pixels, scaled to a shorter side of 256, would be more than "
        rf"16,777,216"
    )
    with pytest.raises(EkgError, match=message):
        split.read(np.arange(1))
    assert peak_memory_mib() - before < 100


# ---------------------------------------------------------------- folders of a user's own


def make_folder(folder, **files):
    """Makes a folder of two classes; `files` are {name of a file of the second class: its
    bytes}.
    """
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(tf.io.encode_png(IMAGE).numpy())
    for name, data in files.items():
        (folder / "b" / name).write_bytes(data)


@pytest.mark.parametrize("held", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_rotated_as_their_exif_data_says(tmp_path, held, form):
    pillow, ops = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    exif = pillow.Exif()
    exif[0x010F], exif[0x0112] = "a camera", held
    name = f"2.{form.lower()}"
    make_folder(tmp_path)
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[:13, :37], 60), -1).astype(np.uint8) * [9, 5, 1]
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[
        form
    ]
    pillow.fromarray(smooth.astype(np.uint8)).save(
        tmp_path / "b" / name, form, exif=exif, **options
    )
    expected = np.asarray(ops.exif_transpose(pillow.open(tmp_path / "b" / name)), np.float32)
    found = images._read_file(str(tmp_path / "b" / name), expected.shape)
    np.testing.assert_allclose(found, expected, atol=8 if form == "JPEG" else 0)


def test_damaged_exif_data_is_ignored():
    pillow = pytest.importorskip("PIL.Image")
    exif, buffer, rng = pillow.Exif(), io.BytesIO(), np.random.default_rng(0)
    exif[0x0112] = 6
    pillow.fromarray(IMAGE).save(buffer, "JPEG", exif=exif)
    assert headers.orientation(buffer.getvalue()) == 6
    for _ in range(2000):
        assert headers.orientation(mutate(buffer.getvalue()[:200], rng)) in range(1, 9)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_webp_is_read_and_unreadable_images_are_counted(tmp_path, channels, caplog):
    pillow, buffer = pytest.importorskip("PIL.Image"), io.BytesIO()
    pillow.fromarray(IMAGE).save(buffer, "WEBP", lossless=True)
    make_folder(
        tmp_path,
        **{
            "2.webp": buffer.getvalue(),
            "3.tiff": b"II*",
            "4.TIFF": b"II*",
            "5.heic": b"",
            "notes.txt": b"",
        },
    )
    data, _ = images.load(tmp_path, (13, 37, channels))
    expected = tf.image.rgb_to_grayscale(IMAGE) if channels == 1 else IMAGE
    np.testing.assert_array_equal(data.read([2])[0, ..., :3], expected)
    message = "3 images are left out, as TensorFlow cannot read them (1 .heic, 2 .tiff)"
    assert len(data.labels) == 3 and message in caplog.text


def test_pipes_devices_and_endless_files_are_not_read(tmp_path, monkeypatch):
    make_folder(tmp_path)
    os.mkfifo(tmp_path / "b" / "2.jpg")
    (tmp_path / "b" / "3.jpg").symlink_to("/dev/zero")
    (tmp_path / "b" / "4.jpg").symlink_to(tmp_path / "a" / "1.png")  # a link to an image is one
    with open(tmp_path / "b" / "5.jpg", "wb") as file:
        file.truncate(2**40)
    data, _ = images.load(tmp_path, (4, 4, 3))
    for number, message in (
        (2, "2.jpg: is no plain file"),
        (3, "3.jpg: is no plain file"),
        (5, "5.jpg: takes 1,099,511,627,776 bytes, more than 268,435,456"),
    ):
        with pytest.raises(EkgError, match=message):
            data.read([number])
    assert data.read([4]).shape == (1, 4, 4, 3)
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(EkgError, match="x.npz: there is no plain file of that name"):
        images.load(tmp_path / "x.npz", (4, 4, 3))
    np.savez_compressed(tmp_path / "y.npz", x=np.zeros((99, 99, 99)), y=np.zeros(9))
    monkeypatch.setattr(images, "machine_memory_mib", lambda: 5)
    with pytest.raises(
        EkgError,
        match="y.npz: its arrays take 7,[0-9,]+ bytes of memory, more than this machine has",
    ):
        images.load(tmp_path / "y.npz", (4, 4, 3))


def test_the_reason_for_a_bad_image_names_no_functions(tmp_path):
    make_folder(tmp_path, **{"2\n.png": b"no image at all"})
    with pytest.raises(EkgError, match=r"2\\n.png: cannot be read as an image") as error:
        images.load(tmp_path, (4, 4, 3))[0].read([2])
    assert "{{" not in str(error.value) and "[Op:" not in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_first_picture_of_a_webp_animation_is_read(tmp_path, mode):
    """TensorFlow's decoder corrupts memory on animations without transparency."""
    pillow, buffer = pytest.importorskip("PIL.Image"), io.BytesIO()
    pictures = [pillow.fromarray(IMAGE).convert(mode)]
    pictures += [pillow.new(mode, pictures[0].size, (level, 9, 9)) for level in range(3)]
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], lossless=True)
    make_folder(tmp_path, **{"2.webp": buffer.getvalue()})
    data, _ = images.load(tmp_path, (*IMAGE.shape[:2], 3))
    for _ in range(20):
        np.testing.assert_array_equal(data.read([2])[0], IMAGE)
    alone = headers.first_picture(buffer.getvalue())
    assert tf.io.decode_webp(alone, 4).shape == (1, *IMAGE.shape[:2], 4)
    for cut in range(0, len(buffer.getvalue()), 7):
        with contextlib.suppress(tf.errors.OpError):
            images._decode(buffer.getvalue()[:cut], 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_bitmaps_are_read_as_they_are_or_refused(tmp_path, mode):
    pillow, buffer = pytest.importorskip("PIL.Image"), io.BytesIO()
    picture = pillow.fromarray(IMAGE).convert(mode)
    picture.save(buffer, "BMP")
    make_folder(tmp_path, **{"2.bmp": buffer.getvalue()})
    data, _ = images.load(tmp_path, (*IMAGE.shape[:2], 3))
    if mode in ("P", "1"):
        with pytest.raises(EkgError, match="2.bmp: (is not decoded: its colours|cannot be read)"):
            data.read([2])
    else:
        np.testing.assert_array_equal(data.read([2])[0], np.asarray(picture.convert("RGB")))
    packed = bytearray(buffer.getvalue())
    packed[30] = 1  # run lengths
    assert "misreads" in (headers.problem_of(bytes(packed)) or "") or mode == "1"


def test_the_size_of_a_jpeg_is_what_its_decoder_reads():
    """Bytes between the segments are skipped, and a segment may not hide the true header."""
    bomb = jpeg(30_000, 30_000)
    small = tf.io.encode_jpeg(IMAGE).numpy()
    place = bomb.index(b"\xff\xc0")
    size = 2 + len(bomb) - place
    cover = b"\xff\x00" + struct.pack(">H", size)  # no segment to the decoder
    hidden = bomb[:place] + cover + bomb[place:] + small[small.index(b"\xff\xc0") :]
    for data in (bomb[:2] + b"\0\0\0" + bomb[2:], hidden):
        assert headers.declared_size(data) == (30_000, 30_000) and headers.problem_of(data)
    assert headers.declared_size(small[:2] + b"\0\0\0" + small[2:]) == IMAGE.shape[:2]
    screen = b"GIF88a" + gif(12_000, 12_000)[6:]  # decoders do not look at the version
    assert headers.problem_of(screen)


def test_no_file_of_a_folder_is_left_out_in_silence(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    make_folder(folder)
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    (elsewhere / "1.PNG").write_bytes(tf.io.encode_png(IMAGE).numpy())
    (elsewhere / "back").symlink_to(elsewhere.parent)
    (folder / "b" / "link.jpg").symlink_to(elsewhere.parent)  # a folder, in spite of its name
    (folder / "stray.jpg").write_bytes(b"")
    data, classes = images.load(folder, (4, 4, 3))
    assert classes == ["a", "b"] and data.labels.tolist() == [0, 1, 1]
    assert data.read([2]).shape == (1, 4, 4, 3)
    assert "1 of its images are in no folder of a class and left out, as stray.jpg" in caplog.text

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images, "_files_below", refuse)
    with pytest.raises(EkgError, match=r"data/a: cannot be read \(Permission denied\)"):
        images.load(folder, (4, 4, 3))
