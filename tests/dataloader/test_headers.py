import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from dataloader import headers, own
from dataloader.photographs import FileSplit
from ekg.errors import EkgError
from ekg.progress import progress_bar

IMAGE = np.random.default_rng(0).integers(0, 256, (13, 37, 3), np.uint8)


def png(width, height):
    """A PNG file that declares a size and holds hardly any pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP"])
def test_the_size_is_that_of_the_decoded_image(form):
    pillow = pytest.importorskip("PIL.Image")
    for options in ({}, {"progressive": True, "comment": b"x" * 300} if form == "JPEG" else {}):
        buffer = io.BytesIO()
        pillow.fromarray(IMAGE).save(buffer, form, **options)
        assert headers.declared_size(buffer.getvalue()) == (13, 37)
        assert headers.problem_of(buffer.getvalue()) is None


def test_a_jpeg_of_tensorflow_is_read_too():
    assert headers.declared_size(tf.io.encode_jpeg(IMAGE).numpy()) == (13, 37)


@pytest.mark.parametrize("data", [b"", b"BM", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff\xd8\xff\xe0\x00\x00" * 9, b"GIF89a",
                                  b"\x89PNG\r\n\x1a\n", b"text", b"\xff\xd8" + b"\xff" * 50])
def test_bytes_that_tell_no_size_are_left_to_the_decoder(data):
    assert headers.declared_size(data) is None and headers.problem_of(data) is None


def test_a_bomb_is_refused_by_its_header_and_one_pixel_is_an_image(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.png").write_bytes(tf.io.encode_png(IMAGE[:1, :1]).numpy())
    data, classes = own.load(tmp_path, (4, 4, 3))
    assert classes == ["a", "b"]
    np.testing.assert_array_equal(data.read([0]), np.broadcast_to(IMAGE[:1, :1], (1, 4, 4, 3)))
    (tmp_path / "b" / "bomb.png").write_bytes(png(20_000, 20_000))
    data, _ = own.load(tmp_path, (4, 4, 3))
    with pytest.raises(EkgError, match="bomb.png: is not decoded: it declares 20000 x 20000 pixels, more than 134,217,728"):
        data.read([1])


def jpeg(width, height):
    """A JPEG file of a small image whose header declares another size."""
    data = tf.io.encode_jpeg(IMAGE).numpy()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4:]


def gif(width, height, frames=1, colours=True):
    """A GIF file whose screen is small and whose frames declare another size; they hold no pixels."""
    table = bytes(6)
    frame = b"!\xf9\x04" + bytes(5) + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0x80 if colours else 0) + (
        table if colours else b"") + b"\x02\x01\x44\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + table + frame * frames + b";"


def test_the_frames_of_a_gif_count_and_not_its_screen():
    assert headers.declared_size(gif(12_000, 11_000)) == (11_000, 12_000)
    assert headers.declared_size(gif(500, 400, frames=3, colours=False)) == (1200, 500)
    assert headers.problem_of(gif(1000, 1000, frames=200)) and headers.problem_of(gif(1000, 1000, frames=20)) is None
    for cut in range(len(gif(5, 5))):
        headers.problem_of(gif(5, 5)[:cut])


@pytest.mark.parametrize("bomb", [png(20_000, 20_000), png(2**32 - 1, 2**32 - 1), jpeg(20_000, 20_000), gif(12_000, 12_000)])
def test_photographs_are_decoded_only_where_their_header_declares_few_pixels(tmp_path, bomb):
    good = [tf.io.encode_png(IMAGE).numpy(), tf.io.encode_jpeg(IMAGE).numpy(), tf.io.encode_png(IMAGE[:1, :1]).numpy()]
    for number, data in enumerate([*good, bomb]):
        (tmp_path / f"{number}.png").write_bytes(data)
    split = FileSplit(np.array([str(tmp_path / f"{i}.png").encode() for i in range(4)]), np.zeros(4, np.int32), 0)
    assert split.read(np.arange(3)).shape == (3, 224, 224, 3)
    with pytest.raises(EkgError, match=r"3.png: cannot be read as an image \(it declares \d+ x \d+ pixels, more than 134,"):
        split.read(np.arange(4))
    with pytest.raises(EkgError, match="3.png: cannot be read"):
        list(split.stream_views([np.arange(4)], 2, (0, 0)))
    with progress_bar("read", 4, "image") as progress:
        assert split.find_damaged(progress).tolist() == [3]


def test_of_an_animation_the_first_picture_counts(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pictures = [pillow.fromarray(np.full((6, 6, 3), level, np.uint8)) for level in (40, 200)]
    for name in "ab":
        (tmp_path / name).mkdir()
        pictures[0].save(tmp_path / name / "moves.gif", save_all=True, append_images=pictures[1:])
    data, _ = own.load(tmp_path, (6, 6, 3))
    np.testing.assert_allclose(data.read([0]), 40, atol=3)
