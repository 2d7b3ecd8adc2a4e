"""Reads the size and orientation of an image from the header of its file, before decoding it."""

import re
import struct

import tensorflow as tf

MOST_PIXELS = 2**27  # 400 MB when decoded with three channels; photographs have 2**25 pixels
MOST_SCALED_PIXELS = 2**24  # 200 MB as float32; allows sides of 256 to 1 at a shorter side of 256
_ALPHA, _ANIMATION = 0x10, 0x02  # flags of a WebP file
_BITMAP_MASKS = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)  # red, green and blue of a pixel


def declared_size(data):
    """Returns (height, width) from the header of a PNG, GIF, BMP, JPEG or WebP file, or None.

    Args:
        data: contents of the file, bytes.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack(">II", data[16:24])
        elif data.startswith(b"GIF"):  # decoders do not look at the version
            return _gif_size(data)
        elif data.startswith(b"BM"):
            width, height = map(abs, struct.unpack("<ii", data[18:26]))
        elif data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        elif is_webp(data):
            return _webp_size(data)
        else:
            return None
    except (struct.error, IndexError, tf.errors.OpError):
        return None
    return height, width


def _gif_size(data):
    """Returns (total height of all frames, largest width), since a decoder decodes every frame."""
    width, height = struct.unpack("<HH", data[6:10])  # of the screen; frames may have other sizes
    heights = []
    position = 13 + _colour_table_size(data[10])
    while data[position : position + 1] in (b"!", b","):
        if data[position] == ord("!"):  # an extension: its label, and blocks
            position += 2
        else:  # a frame: its header, a colour table, and blocks
            frame_header = data[position + 5 : position + 10]
            frame_width, frame_height, flags = struct.unpack("<HHB", frame_header)
            width = max(width, frame_width)
            heights.append(frame_height)
            position += 11 + _colour_table_size(flags)
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return max(height, sum(heights)), width


def _colour_table_size(flags):
    """Returns the size of a GIF's colour table in bytes."""
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0


def _jpeg_size(data):
    """Returns (height, width) as the decoder reads them: it skips bytes between the segments."""
    with tf.device("CPU"):
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
    return height, width


def is_webp(data):
    """Returns whether the contents of a file are a WebP image."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data):
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (size & 0x3FFF for size in struct.unpack("<HH", data[26:30]))
    return height, width


def _webp_chunks(data):
    """Yields (kind, begin, end) of the chunks of a WebP file, without their heads of 8 bytes."""
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack("<4sI", data[position : position + 8])
        yield kind, position + 8, position + 8 + size
        position += 8 + size + size % 2


def first_picture(data):
    """Returns the contents of a WebP file with the first picture of an animation alone, and RGBA.

    TensorFlow writes beyond its buffer when it decodes an animation without transparency, so the
    header then declares transparency. A still image returns None.

    Args:
        data: contents of a WebP file, bytes.
    """
    if data[12:16] != b"VP8X" or not data[20] & _ANIMATION:
        return None
    end = next((end for kind, _, end in _webp_chunks(data) if kind == b"ANMF"), len(data))
    end += end % 2
    size = struct.pack("<I", end - 8)
    return data[:4] + size + data[8:20] + bytes([data[20] | _ALPHA]) + data[21:end]


def orientation(data):
    """Returns the EXIF orientation of a JPEG, PNG or WebP image, 1 to 8; 1 is upright, the default.

    Args:
        data: contents of the file, bytes.
    """
    try:
        return _orientation_of(_exif(data))
    except (struct.error, IndexError):
        return 1


def _exif(data):
    """Returns the EXIF block of an image file, bytes, empty if there is none."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        position = 8
        while position + 8 <= len(data):
            size, kind = struct.unpack(">I4s", data[position : position + 8])
            if kind == b"eXIf":
                return data[position + 8 : position + 8 + size]
            position += 12 + size
        return b""
    if is_webp(data):
        found = [data[begin:end] for kind, begin, end in _webp_chunks(data) if kind == b"EXIF"]
        return found[0].removeprefix(b"Exif\0\0") if found else b""
    if not data.startswith(b"\xff\xd8"):
        return b""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # the pixels begin
            break
        (size,) = struct.unpack(">H", data[position + 2 : position + 4])
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return data[position + 10 : position + 2 + size]
        position += 2 + size
    return b""


def _orientation_of(exif):
    """Returns the orientation in an EXIF block, or 1."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    (first,) = struct.unpack(order + "I", exif[4:8])
    (count,) = struct.unpack(order + "H", exif[first : first + 2])
    for number in range(count):
        position = first + 2 + 12 * number
        tag, kind, _, value = struct.unpack(order + "HHIH", exif[position : position + 10])
        if tag == 0x0112 and kind == 3:  # the orientation, a 16-bit integer
            return value if 1 <= value <= 8 else 1
    return 1


def upright(image, exif_orientation):
    """Returns an image [height, width, channels] turned upright, given its orientation()."""
    if exif_orientation >= 5:
        image = image.swapaxes(0, 1)
    if exif_orientation in (3, 4, 7, 8):
        image = image[::-1]
    if exif_orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def problem_of(data, shorter_side=None):
    """Returns why an image file should not be decoded, or None.

    Args:
        data: contents of the file, bytes.
        shorter_side: number of pixels to which the shorter side is scaled; None without scaling.
    """
    if data.startswith(b"BM") and _is_misread(data):
        return "its colours are indexed or packed, which TensorFlow misreads"
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


def _is_misread(data):
    """Returns whether TensorFlow would decode a BMP file to other colours than it holds."""
    try:
        header_size, bits, packing = struct.unpack("<14xI10xHI", data[:34])
        (num_colours,) = struct.unpack("<I", data[46:50])
    except struct.error:
        return False  # the decoder refuses it
    if header_size < 40:
        return True
    if bits == 32 and packing == 3:
        return data[54:66] != _BITMAP_MASKS
    if bits == 8 and packing == 0:
        num_colours = min(num_colours or 256, 256)
        greys = b"".join(bytes([level, level, level, 0]) for level in range(num_colours))
        return data[14 + header_size :][: len(greys)] != greys
    return bits in (8, 16, 24, 32) and packing != 0


def reason_of(error):
    """Returns the reason in a tf.errors.OpError about reading or decoding an image file."""
    if isinstance(error, tf.errors.NotFoundError):
        return "no such file"
    if "Input is empty" in error.message:
        return "it is empty"
    first = error.message.splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} |jpeg::Uncompress failed. | \[Op:.*", "", first)[:100]
