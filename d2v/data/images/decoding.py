"""Decoding of image files into 8-bit pixels: formats, orientation, bit depth, channels."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import ExifTags, Image

from d2v.data.bad_samples import BadSample
from d2v.data.images.levels import Levels, grey_to_8_bits, is_deep, levels_of, to_8_bits
from d2v.lfs import IS_POINTER, is_lfs_pointer

# Pillow's formats that hold images of pixels and need no program beside it (EPS starts Ghostscript).
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "PCX", "DCX", "SGI"),
    *("SUN", "MSP", "IM", "ICO", "CUR", "ICNS", "QOI", "DDS", "PSD", "XBM", "XPM"),
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow keeps what may hold an orientation.
_TAGGED = frozenset(("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))
# 16-bit colours, of which Pillow keeps the upper byte, and the unpacker that gives the lower one instead. There is none
# for a grey with opacity: its four bytes are read as four channels.
_LOWER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBX", "RGBA") for order, other in ("BL", "LB", "NB")
} | {"LA;16B": "RGBA"}
_LOWER_OF_GREY = [1, 1, 1, 3]


@cache
def image_endings() -> tuple[str, ...]:
    """Endings of the files that Pillow can read, in lower case."""
    endings = Image.registered_extensions().items()
    return tuple(sorted(ending for ending, name in endings if name in FORMATS and name in Image.OPEN))


def decode_image(file: str | os.PathLike[str] | bytes, levels: Levels | None = None) -> Image.Image:
    """Open and fully decode an image, upright as its EXIF orientation says; of several frames, the first.

    Args:
        file: a path, or an image file's content.
        levels: of the data set, for images of more than 8 bits, which become 8 bits. None: greys stay as they are, and
            16-bit colours are read by their own highest value.

    Raises:
        BadSample: no such file, an empty file, not an image, truncated, corrupt, or over PIL's limit of pixels.
    """
    with _reading(file), _opened(file) as image:
        lower = _lower_byte(image)
        stated = _states_its_range(image)
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        pixels: Image.Image = image
        if lower is not None and (levels is None or (levels.sampled and levels.bits != 16)):
            pixels = _colour_to_8_bits(image, file, lower, levels)
        elif stated:
            pixels = grey_to_8_bits(image, Levels.of_bits(16))
        elif levels is not None and is_deep(image):
            pixels = grey_to_8_bits(image, levels)
        return pixels if upright is None else pixels.transpose(upright)


def deep_pixels(file: str | os.PathLike[str] | bytes) -> np.ndarray | None:
    """Values, without opacity, of an image of more than 8 bits.

    None for bad files and for others, of which only the header is read.
    """
    try:
        with _reading(file), _opened(file) as image:
            lower = _lower_byte(image)
            if lower is None and (not is_deep(image) or _states_its_range(image)):
                return None
            return np.asarray(image) if lower is None else _colours_of_16_bits(image, file, lower)[..., :3]
    except BadSample:
        return None


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """An image of any mode in 8 bits, grey or RGB.

    Transparent pixels are composed over white. Images of more than 8 bits, which data sets have already brought to 8,
    are read by their own values: as few bits as hold the highest, floats from 0 to 1, or else from their minimum to
    their maximum.

    Args:
        image: of any PIL mode.
        in_chans: 1 (mode "L") or 3 (mode "RGB").

    Raises:
        BadSample: PIL cannot convert this mode.
    """
    mode = "L" if in_chans == 1 else "RGB"
    try:
        if is_deep(image):
            image = grey_to_8_bits(image)
        elif image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")  # PIL knows fewer ways to grey
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise BadSample(f"mode {image.mode} cannot be converted to {mode}") from error


def _opened(file: str | os.PathLike[str] | bytes) -> Image.Image:
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)


@contextmanager
def _reading(file: str | os.PathLike[str] | bytes) -> Iterator[None]:
    """Turn any error about an image file into a BadSample."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except Image.UnidentifiedImageError as error:
        empty = len(file) == 0 if isinstance(file, bytes) else os.path.getsize(file) == 0
        pointer = IS_POINTER if is_lfs_pointer(file) else "not an image file"
        raise BadSample("empty file" if empty else pointer) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(f"decompression bomb (more than {Image.MAX_IMAGE_PIXELS:,} pixels)") from error
    except OSError as error:
        raise BadSample(error.strerror or str(error)) from error
    except Exception as error:  # PIL's plugins raise nearly anything on corrupt files
        raise BadSample(f"{type(error).__name__} while decoding: {error}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, from 1 (upright) to 8; 1 where there is none, or none that can be read."""
    if not _TAGGED & image.info.keys():  # PIL has already turned TIFFs
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if isinstance(orientation, int) else 1
    except Exception:  # corrupt, of an image that is not
        return 1


def _rawmode(image: Image.Image) -> str | None:
    """PIL's name of how pixels lie in the file."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return None
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _lower_byte(image: Image.Image) -> str | None:
    return _LOWER_BYTE.get(_rawmode(image) or "")


def _states_its_range(image: Image.Image) -> bool:
    """Return whether a deep image has a highest value in its header, to which PIL has scaled it: PGM below 16 bits."""
    tiles = getattr(image, "tile", None) or [("",)]
    return is_deep(image) and str(tiles[0][0]).startswith("ppm") and tiles[0][3][1] < 65535


def _colours_of_16_bits(image: Image.Image, file: str | os.PathLike[str] | bytes, lower: str) -> np.ndarray:
    """Return (H, W, 3 or 4) uint16: PIL, which has no such mode, reads the file once for each byte."""
    with _opened(file) as again:
        tiles = [tile._replace(args=_replaced(tile[3], lower)) for tile in again.tile]  # type: ignore[attr-defined]
        again.tile = tiles  # type: ignore[attr-defined]
        low = np.asarray(again)
    low = low[..., _LOWER_OF_GREY] if lower == "RGBA" else low
    return np.asarray(image).astype(np.uint16) << 8 | low


def _replaced(arguments: str | tuple[object, ...], rawmode: str) -> str | tuple[object, ...]:
    return (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode


def _colour_to_8_bits(
    image: Image.Image, file: str | os.PathLike[str] | bytes, lower: str, levels: Levels | None
) -> Image.Image:
    colours = _colours_of_16_bits(image, file, lower)
    if levels is None:
        levels = levels_of(0, int(colours[..., :3].max()))
    scaled = np.array(image)  # the fourth channel, opacity, always has 16 bits
    scaled[..., :3] = to_8_bits(colours[..., :3], levels)
    return Image.fromarray(scaled)
