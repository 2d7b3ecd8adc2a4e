"""The size that an image file declares in its first bytes, read before anything is decoded."""

import re
import struct

import tensorflow as tf

MOST_PIXELS = 2**27  # a photograph has 2**25; decoded with three channels this takes 400 MB
MOST_SCALED_PIXELS = (
    2**24
)  # after scaling, where they are float32: 200 MB; sides of up to 256 to 1 at 256 pixels
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers of a frame's header


def declared_size(data):
    """Returns (height, width) of a PNG, GIF, BMP, JPEG or WebP file, or None where its first bytes
    do not tell.

    Args:
        data: the bytes of the file.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack(">II", data[16:24])
        elif data.startswith((b"GIF87a", b"GIF89a")):
            return _gif_size(data)
        elif data.startswith(b"BM"):
            width, height = map(abs, struct.unpack("<ii", data[18:26]))
        elif data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        elif is_webp(data):
            return _webp_size(data)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return height, width


def _gif_size(data):
    """Returns (height of all frames together, greatest width): a decoder makes every frame, of its
    own size.
    """
    width, height = struct.unpack(
        "<HH", data[6:10]
    )  # of the screen, which need not be that of a frame
    place, heights = 13 + _colours(data[10]), []
    while data[place : place + 1] in (b"!", b","):
        if data[place] == ord("!"):  # an extension: its label, and blocks
            place += 2
        else:
            frame_width, frame_height, flags = struct.unpack("<HHB", data[place + 5 : place + 10])
            width, place = max(width, frame_width), place + 11 + _colours(flags)
            heights.append(frame_height)
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return max(height, sum(heights)), width


def _colours(flags):
    """Returns the bytes of a GIF's table of colours."""
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0


def _jpeg_size(data):
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            return struct.unpack(">HH", data[place + 5 : place + 9])
        is_alone = (
            marker == 0xFF or 0xD0 <= marker <= 0xD9 or marker == 0x01
        )  # fill bytes, and markers without a length
        place += (
            1
            if marker == 0xFF
            else 2
            if is_alone
            else 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        )
    return None


def is_webp(data):
    """Returns whether the bytes of a file are those of a WebP image."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data):
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (
            1 + int.from_bytes(data[place : place + 3], "little") for place in (24, 27)
        )
    elif kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (size & 0x3FFF for size in struct.unpack("<HH", data[26:30]))
    return height, width


def orientation(data):
    """Returns how a camera held a JPEG or PNG image, 1 to 8 as in EXIF; 1 is upright, and what
    tells nothing is, too.

    Args:
        data: the bytes of the file.
    """
    try:
        return _orientation_of(_exif(data))
    except (struct.error, IndexError):
        return 1


def _exif(data):
    """Returns the bytes of the EXIF block of an image file, empty where there is none."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        place = 8
        while place + 8 <= len(data):
            size, kind = struct.unpack(">I4s", data[place : place + 8])
            if kind == b"eXIf":
                return data[place + 8 : place + 8 + size]
            place += 12 + size
        return b""
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while (
        place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA
    ):  # up to the pixels
        (size,) = struct.unpack(">H", data[place + 2 : place + 4])
        if data[place + 1] == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            return data[place + 10 : place + 2 + size]
        place += 2 + size
    return b""


def _orientation_of(exif):
    """Returns the orientation that an EXIF block tells, or 1."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    (first,) = struct.unpack(order + "I", exif[4:8])
    (count,) = struct.unpack(order + "H", exif[first : first + 2])
    for number in range(count):
        place = first + 2 + 12 * number
        tag, kind, _, value = struct.unpack(order + "HHIH", exif[place : place + 10])
        if tag == 0x0112 and kind == 3:  # a short, at the front of its four bytes
            return value if 1 <= value <= 8 else 1
    return 1


def upright(image, held):
    """Returns an image as it was seen, of an image [height, width, channels] and its
    orientation().
    """
    if held >= 5:
        image = image.swapaxes(0, 1)
    if held in (3, 4, 7, 8):
        image = image[::-1]
    if held in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def problem_of(data, shorter_side=None):
    """Returns why the bytes of an image file should not be decoded, or None.

    Args:
        data: the bytes of the file.
        shorter_side: pixels that its shorter side is scaled to; None where it is not.
    """
    size = declared_size(data)
    if size is None:
        return None
    if size[0] * size[1] > MOST_PIXELS:
        return f"it declares {size[1]} x {size[0]} pixels, more than {MOST_PIXELS:,}"
    if shorter_side is not None and max(size) * shorter_side**2 > MOST_SCALED_PIXELS * min(size):
        return (
            f"its {size[1]} x {size[0]} pixels, scaled to a shorter side of {shorter_side}, would "
            f"be more than {MOST_SCALED_PIXELS:,}"
        )
    return None


def reason_of(error):
    """Returns why TensorFlow could not read or decode a file, of its tf.errors.OpError, without its
    function names.
    """
    if isinstance(error, tf.errors.NotFoundError):
        return "no such file"
    if "Input is empty" in error.message:
        return "it is empty"
    return re.sub(
        r"^\{\{.*?\}\} |jpeg::Uncompress failed. | \[Op:.*", "", error.message.splitlines()[0]
    )[:100]
