"""The size that an image file declares in its first bytes, read before anything is decoded."""

import struct

MOST_PIXELS = 2**27  # a photograph has 2**25; decoded with three channels this takes 400 MB
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers of a frame's header


def declared_size(data):
    """Returns (height, width) of a PNG, GIF, BMP or JPEG file, or None where its first bytes do not tell.

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
        else:
            return None
    except (struct.error, IndexError):
        return None
    return height, width


def _gif_size(data):
    """Returns (height of all frames together, greatest width): a decoder makes every frame, of its own size."""
    width, height = struct.unpack("<HH", data[6:10])  # of the screen, which need not be that of a frame
    place, heights = 13 + _colours(data[10]), []
    while data[place:place + 1] in (b"!", b","):
        if data[place] == ord("!"):  # an extension: its label, and blocks
            place += 2
        else:
            frame_width, frame_height, flags = struct.unpack("<HHB", data[place + 5:place + 10])
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
            return struct.unpack(">HH", data[place + 5:place + 9])
        is_alone = marker == 0xFF or 0xD0 <= marker <= 0xD9 or marker == 0x01  # fill bytes, and markers without a length
        place += 1 if marker == 0xFF else 2 if is_alone else 2 + struct.unpack(">H", data[place + 2:place + 4])[0]
    return None


def problem_of(data):
    """Returns why the bytes of an image file should not be decoded, or None."""
    size = declared_size(data)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        return f"it declares {size[1]} x {size[0]} pixels, more than {MOST_PIXELS:,}"
    return None
