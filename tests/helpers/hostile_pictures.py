"""Pictures that were made to hurt: small files that take gigabytes, minutes or a crash in a careless reader.

Each function returns the bytes of one file. `MAKERS` names them all. Those in `WHOLE` have a first frame that is whole,
and within all limits if nothing else is read; every other one must be refused.
"""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of a header, `extra` chunks and the compressed `rows` (each begins with its filter byte)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return _PNG + png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    """`count` zero bytes, compressed, at 1 KiB for each MiB: one compressed block of a MiB is repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = packer.compress(bytes(count & ((1 << 20) - 1))) + packer.flush()
    adler = struct.pack(">HH", count % 65_521, 1)  # the checksum of zeros
    return b"\x78\xda" + block * (count >> 20) + rest + adler


@cache
def thin_png(height: int) -> bytes:
    """A whole, valid grey PNG of 1 x `height` pixels: a resize to 256 across makes it 256 x (256 `height`)."""
    return png(1, height, _zeros(2 * height))


@cache
def flat_png(width: int) -> bytes:
    """A whole, valid PNG of `width` x 1 pixels of one bit."""
    return png(width, 1, _zeros(1 + -(-width // 8)), depth=1)


@cache
def largest_png() -> bytes:
    """A whole, valid RGBA PNG of 89,472,681 pixels, just within what is decoded. It is no attack, and must pass."""
    side = 9459
    return png(side, side, _zeros(side * (1 + 4 * side)), colour=6)


@cache
def endless_jpeg(scans: int = 4000, width: int = 8000, height: int = 5000) -> bytes:
    """A valid grey progressive JPEG whose last scan is repeated: each repetition is some 60 bytes and goes over all
    coefficients again, tens of milliseconds for 40 million.
    """
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    # The last scan refines the lowest bit of the coefficients 1 to 63. It brings its own Huffman table along, which
    # stands once before it and stays in force.
    scan = data[last : data.rindex(b"\xff\xd9")]
    return data[:last] + scan * scans + b"\xff\xd9"


@cache
def large_jpeg() -> bytes:
    """An ordinary progressive colour JPEG of 40 million pixels. It is no attack, and must pass."""
    file = io.BytesIO()
    gradient = Image.linear_gradient("L").resize((8000, 5000))
    Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient)).save(
        file, "JPEG", progressive=True, quality=60
    )
    return file.getvalue()


def _directory(next_at: int, pixels_at: int, width: int = 3, height: int = 2, *, compression: int = 1) -> bytes:
    """A TIFF directory of an uncompressed grey picture; `compression` 8 is deflate."""
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, pixels_at),
        (277, 3, 1), (278, 4, height), (279, 4, width * height),
    ]  # fmt: skip
    packed = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", next_at)


_DIRECTORY_BYTES = 2 + 9 * 12 + 4


@cache
def tiff_of(directories: int) -> bytes:
    """A TIFF of so many directories, each of a grey picture of 3 x 2 pixels. All share their pixels."""
    start = 8 + 6
    parts = [b"II*\0" + struct.pack("<I", start) + bytes(range(0, 240, 40))]
    for number in range(1, directories + 1):
        following = start + number * _DIRECTORY_BYTES if number < directories else 0
        parts.append(_directory(following, 8))
    return b"".join(parts)


def looping_tiff() -> bytes:
    """A TIFF whose second directory names the first one as the next."""
    start = 8 + 6
    first = _directory(start + _DIRECTORY_BYTES, 8)
    return b"II*\0" + struct.pack("<I", start) + bytes(6) + first + _directory(start, 8)


def lying_tiff() -> bytes:
    """A TIFF that claims 9000 x 9000 pixels in a strip that the file does not have."""
    return b"II*\0" + struct.pack("<I", 14) + bytes(6) + _directory(0, 8, 9000, 9000)


@cache
def swelling_tiff() -> bytes:
    """A TIFF of 3 x 2 pixels whose deflated strip holds a gigabyte."""
    packed = _zeros(1 << 30)
    start = 8 + len(packed)
    directory = bytearray(_directory(0, 8, compression=8))
    directory[-8:-4] = struct.pack("<I", len(packed))
    return b"II*\0" + struct.pack("<I", start) + packed + bytes(directory)


@cache
def swelling_profile() -> bytes:
    """A PNG of one pixel whose colour profile holds a gigabyte."""
    return png(1, 1, _zeros(2), extra=png_chunk(b"iCCP", b"p\0\0" + _zeros(1 << 30)))


@cache
def swelling_text() -> bytes:
    """A PNG of one pixel whose comment holds a gigabyte."""
    return png(1, 1, _zeros(2), extra=png_chunk(b"zTXt", b"Comment\0\0" + _zeros(1 << 30)))


@cache
def swelling_pixels() -> bytes:
    """A PNG of 5 x 7 pixels whose compressed pixels hold a gigabyte."""
    return png(5, 7, _zeros(1 << 30))


def claiming_png(width: int = 9000, height: int = 9000) -> bytes:
    """A PNG that claims so many RGBA pixels and has a hundred bytes of them."""
    return png(width, height, zlib.compress(bytes(100)), colour=6)


def animated_png(frames: int = 0xFFFFFFFF) -> bytes:
    """A PNG of one pixel that claims so many frames."""
    return png(1, 1, _zeros(2), extra=png_chunk(b"acTL", struct.pack(">II", frames, 0)))


def large_gif(side: int = 65_535) -> bytes:
    """A GIF of one pixel on a logical screen of `side` x `side`."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


@cache
def long_gif(frames: int = 20_000) -> bytes:
    """A GIF of so many frames of 3 x 2 pixels."""
    file = io.BytesIO()
    Image.new("L", (3, 2), 90).save(file, "GIF")
    data = file.getvalue()
    start = data.index(b",", 13)  # an image descriptor; before it are the header and the colours
    return data[:start] + data[start:-1] * frames + b";"


def _bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + 12, 0, 0, 14 + len(header)) + header + bytes(12)


def lying_webp(side: int = 16_383) -> bytes:
    """A WebP whose bitstream of 5 x 7 pixels has a header that claims `side` x `side`."""
    file = io.BytesIO()
    Image.new("RGB", (5, 7), "teal").save(file, "WEBP")
    data = bytearray(file.getvalue())
    place = data.index(b"\x9d\x01\x2a") + 3
    data[place : place + 4] = struct.pack("<HH", side, side)
    return bytes(data)


def lying_jpeg(width: int = 9000, height: int = 9000) -> bytes:
    """A JPEG of 5 x 7 pixels whose header claims more."""
    file = io.BytesIO()
    Image.new("RGB", (5, 7), "teal").save(file, "JPEG")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


MAKERS: dict[str, Callable[[], bytes]] = {
    "1x6000 PNG": lambda: thin_png(6000),
    "1x100000 PNG": lambda: thin_png(100_000),
    "1x9000000 PNG": lambda: thin_png(9_000_000),
    "16000000x1 PNG of one bit": lambda: flat_png(16_000_000),
    "PNG that claims 2 billion pixels a side": lambda: claiming_png(0x7FFFFFFF, 0x7FFFFFFF),
    "PNG that claims no pixels": lambda: claiming_png(0, 0),
    "PNG that claims 9000x9000": claiming_png,
    "PNG with a gigabyte of pixels": swelling_pixels,
    "PNG with a gigabyte of profile": swelling_profile,
    "PNG with a gigabyte of comment": swelling_text,
    "PNG that claims 4 billion frames": animated_png,
    "40-megapixel JPEG of 4000 scans": endless_jpeg,
    "JPEG that claims 9000x9000": lying_jpeg,
    "JPEG cut after its header": lambda: large_jpeg()[:700],
    "TIFF of 16000 directories": lambda: tiff_of(16_000),
    "TIFF whose directories loop": looping_tiff,
    "TIFF that claims 9000x9000": lying_tiff,
    "TIFF with a gigabyte of pixels": swelling_tiff,
    "GIF of 65535x65535": large_gif,
    "GIF of 9000x9000": lambda: large_gif(9000),
    "GIF of 20000 frames": long_gif,
    "BMP of negative width": lambda: _bmp(-3, 2),
    "BMP of negative height": lambda: _bmp(3, -(1 << 31)),
    "BMP of 2 billion pixels a side": lambda: _bmp(0x7FFFFFFF, 0x7FFFFFFF),
    "BMP of no pixels": lambda: _bmp(0, 0),
    "WebP that claims 16383x16383": lying_webp,
    "nothing": lambda: b"",
    "a page": lambda: b"<!DOCTYPE html><title>404</title>",
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file showpage\n",
}
WHOLE = (
    "PNG with a gigabyte of pixels", "PNG that claims 4 billion frames", "JPEG that claims 9000x9000",
    "TIFF of 16000 directories", "TIFF whose directories loop", "TIFF with a gigabyte of pixels",
    "GIF of 9000x9000", "GIF of 20000 frames",
)  # fmt: skip
