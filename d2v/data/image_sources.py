"""Where images come from: the samples that ship with the package, and folders (``hf_images`` holds Hugging Face's).

A source hands out decoded images, as they are stored, and raises ``BadSample`` for what cannot be decoded. What to do
about that is for the data sets in ``image_datasets`` to decide.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.files import files_below
from d2v.data.fingerprint import file_mark

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))


def decode_image(file: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open and fully decode an image; of several frames, the first.

    Args:
        file: a path, or an image file's content.

    Raises:
        BadSample: no such file, an empty file, not an image, truncated, corrupt, or over PIL's limit of pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF and the like: nobody reads it
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                image.load()
                return image
    except Image.UnidentifiedImageError as error:
        empty = len(file) == 0 if isinstance(file, bytes) else os.path.getsize(file) == 0
        raise BadSample("empty file" if empty else "not an image file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(f"decompression bomb (more than {Image.MAX_IMAGE_PIXELS:,} pixels)") from error
    except OSError as error:
        raise BadSample(error.strerror or str(error)) from error
    except Exception as error:  # PIL's plugins raise nearly anything on corrupt files
        raise BadSample(f"{type(error).__name__} while decoding: {error}") from error


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """An image of any mode in 8 bits, grey or RGB.

    Transparent pixels are composed over white. 16-bit greys keep their upper byte; 32-bit integers and floats, whose
    range no file states, are stretched from their own minimum and maximum to 0..255.

    Args:
        image: of any PIL mode.
        in_chans: 1 (mode "L") or 3 (mode "RGB").

    Raises:
        BadSample: PIL cannot convert this mode.
    """
    mode = "L" if in_chans == 1 else "RGB"
    try:
        if image.mode.startswith(("I", "F")):
            image = _to_8_bit(image)
        elif image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")  # PIL knows fewer ways to grey
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise BadSample(f"mode {image.mode} cannot be converted to {mode}") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    stretched = np.nan_to_num(pixels.astype(np.float64))
    stretched -= stretched.min()
    return Image.fromarray((stretched * (255 / max(stretched.max(), 1e-12))).round().astype(np.uint8))


@cache
def _read_idx(name: str) -> np.ndarray:
    """The uint8 array in a gzipped idx file that ships with the package."""
    with (resources.files("d2v.data.samples") / name).open("rb") as file:
        content = gzip.decompress(file.read())
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", count=ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


SamplesSplit = Literal["train", "val", "all"]


class SampleImages:
    """The 10,000 images of Fashion-MNIST that ship with the package: 28x28, grey, ten classes.

    Args:
        split: "train" is the first 8,000, "val" the other 2,000, "all" both.
    """

    class_names: tuple[str, ...] | None = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def __init__(self, split: SamplesSplit = "all") -> None:
        parts = {"train": slice(0, 8000), "val": slice(8000, None), "all": slice(None)}
        if split not in parts:
            raise ValueError(f"split={split!r}: choose one of {', '.join(parts)}")
        part = parts[split]
        self._images = _read_idx("fashion_mnist_images.idx3.gz")[part]
        self._labels = _read_idx("fashion_mnist_labels.idx1.gz")[part]
        self._first = part.start or 0

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        """A 28x28 image of mode "L"."""
        return Image.fromarray(self._images[index])

    def label(self, index: int) -> int | None:
        """0 to 9."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The image's number in the file."""
        return f"fashion_mnist[{self._first + index}]"


class ImageFolder:
    """Image files below a directory, in the order of their names.

    In ImageNet's layout every directory directly below the root is a class. A folder that holds images itself, or fewer
    than two directories with images, has no labels. Directories are searched recursively and symbolic links followed;
    hidden files are ignored.

    Args:
        root: the directory.
        class_names: the classes of the training set, for a validation set whose labels must mean the same.
        key: the config key that ``root`` was read from, for messages.

    Raises:
        FileNotFoundError: no such directory, or no image in it.
        ValueError: ``root`` is a file, or it has a class that ``class_names`` lacks.
    """

    class_names: tuple[str, ...] | None

    def __init__(
        self, root: str | os.PathLike[str], class_names: tuple[str, ...] | None = None, key: str = "data.root"
    ) -> None:
        self._root = require_directory(root, key)
        paths = [os.path.relpath(path, self._root) for path in files_below(self._root, EXTENSIONS)]
        if not paths:
            raise FileNotFoundError(
                f"{key}={root}: no image file below this directory ({', '.join(sorted(EXTENSIONS))}); "
                f"point {key} to a folder of images"
            )
        # One array instead of a list of str: workers would copy a list's pages, by touching reference counts.
        self._paths = np.array([os.fsencode(path) for path in paths])
        classes = [path.split(os.sep, 1)[0] if os.sep in path else None for path in paths]
        found = sorted({name for name in classes if name is not None})
        labelled = None not in classes and (len(found) > 1 or class_names is not None)
        self.class_names = (class_names or tuple(found)) if labelled else None
        self._labels: np.ndarray | None = None
        if self.class_names is not None:
            label_of = {name: label for label, name in enumerate(self.class_names)}
            if unknown := [name for name in found if name not in label_of]:
                raise ValueError(
                    f"{key}={root}: class directories {unknown[:5]} are not in the training set; "
                    "give both sets the same class directories"
                )
            self._labels = np.array([label_of[str(name)] for name in classes])

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> Image.Image:
        """The decoded file. Raises BadSample."""
        return decode_image(self._root / self.name(index))

    def label(self, index: int) -> int | None:
        """The number of the class directory, or None in a flat folder."""
        return None if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        """The file's path relative to the root."""
        return os.fsdecode(self._paths[index])

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the file."""
        return file_mark(self._root / self.name(index))


def require_directory(root: str | os.PathLike[str], key: str) -> Path:
    """``root`` as a path, after checking that it is a directory; errors name the config key."""
    path = Path(root).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{key}={root}: no such directory; set {key} to a folder of images")
    if not path.is_dir():
        raise ValueError(f"{key}={root}: not a directory; set {key} to the folder that holds the images")
    return path
