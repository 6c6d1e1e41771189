"""Pictures from PNG and JPEG files, brought to a model's size with Pillow.

What is ambiguous is refused: transparency, 16 bits a value, CMYK, animation. A picture that its camera has marked as
turned (EXIF) is turned upright; grey becomes three equal channels, and colours become grey as Pillow weighs them
(ITU-R 601-2), with a `PictureWarning`.
"""

import math
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchloom.arrays import UNREADABLE
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.frames import as_array, by_name
from patchloom.compiler.machine.preprocessing import Bytes, Preprocessing
from patchloom.compiler.machine.program import Task
from patchloom.extras import needed_by

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]
SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
PNG_DEPTH = 24  # where a PNG states its bits a value
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}  # Pillow's, without alpha
COLOURS = {1: "L", 3: "RGB"}  # by channels


class PictureWarning(Error, UserWarning):
    """Pictures have other colours than the model takes, and were converted."""


def is_picture(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


def pictures_in(folder: Path) -> list[Path]:
    """A folder's pictures, by name; raises `InputError` if it has none."""
    found = sorted(path for path in folder.iterdir() if is_picture(path))
    if not found:
        raise InputError(f"{folder} must have pictures that end in {', '.join(SUFFIXES)}, and there are none")
    return found


def inputs_with_pictures(task: Task, inputs: Any) -> dict[str, Any]:
    """A task's inputs by name, pictures read; arrays that need no Pillow are left to `input_frames`."""
    given = by_name("inputs", inputs, [port.name for port in task.inputs])
    kept = {port.name: port.preprocessing for port in task.inputs}
    return {name: read_pictures(f"input '{name}'", value, kept[name]) for name, value in given.items()}


def read_pictures(what: str, value: Any, preprocessing: Preprocessing | None) -> Any:
    """The model's input of what only Pillow can bring to it; anything else as it is.

    That is the path of a picture, a list of paths and uint8 arrays, which is a batch, or a uint8 array of another size
    than the model's.
    """
    listed = isinstance(value, list)
    parts = value if listed else [value]
    arrays = listed and preprocessing is not None
    pictures = [_is_path(part) or (arrays and _dtype(part) == np.uint8) for part in parts]
    if any(pictures) and not all(pictures):
        raise InputError(f"{what} must be a list of pictures (paths and uint8 arrays) or of numbers, not of both")
    if not parts or not any(pictures):
        _refuse_image(what, value)
        return _resized(what, value, preprocessing) if preprocessing and _dtype(value) == np.uint8 else value
    if preprocessing is None:
        raise InputError(
            f"{what} must be arrays: pictures need a preprocessing, and there is none: "
            "patchloom.compile(..., preprocessing=...)"
        )
    reading = _Reading(what, preprocessing)
    made = np.stack([reading.picture(part) for part in parts])
    reading.tell()
    return made if listed else made[0]


def read_frame(what: str, frame: Bytes, preprocessing: Preprocessing) -> Floats:
    """The model's input of [height, width, 3] red, green and blue, as a camera gives them."""
    if preprocessing.channels == 1:
        with needed_by(f"{what}: colours to grey", "images"):
            from PIL import Image  # noqa: PLC0415 - an extra
        frame = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).convert("L"))[..., None]
    return preprocessing.normalised(_fitted(what, frame, preprocessing))


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _dtype(value: Any) -> Any:
    """Of a tensor or array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value.dtype
    return np.uint8 if str(getattr(value, "dtype", "")) == "torch.uint8" else None


def _refuse_image(what: str, value: Any) -> None:
    """NumPy would take a palette's numbers for brightness."""
    image = sys.modules.get("PIL.Image")
    for part in value if isinstance(value, list) else [value]:
        if image is not None and isinstance(part, image.Image):
            raise InputError(
                f"{what} must be the path of a picture or an array, not a PIL.Image: its pixels as they are, are "
                "np.asarray(image.convert('RGB'))"
            )


def _resized(what: str, value: Any, preprocessing: Preprocessing) -> Any:
    """A uint8 array of one picture or a batch, if it has not the model's size."""
    arranged = preprocessing.arranged(what, as_array(what, value))
    if arranged.shape[-3:-1] == preprocessing.size or preprocessing.resize is None or not arranged.size:
        return value  # `input_frames` takes it or says what is wrong
    if arranged.ndim == 3:
        return preprocessing.normalised(_fitted(what, arranged, preprocessing))
    return preprocessing.normalised(np.stack([_fitted(what, picture, preprocessing) for picture in arranged]))


@dataclass
class _Reading:
    """Pictures of one input, and which of them were converted."""

    what: str
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        self.converted: list[Path] = []

    def picture(self, part: Any) -> Floats:
        """The model's input of a path, or of a uint8 array of one picture."""
        if not _is_path(part):
            array = self.preprocessing.arranged(self.what, as_array(self.what, part))
            if array.ndim != 3:
                raise InputError(f"{self.what} must be a list of single pictures, not of shape {list(array.shape)}")
            if array.shape[:2] != self.preprocessing.size:
                array = _fitted(self.what, array, self.preprocessing)
            return self.preprocessing.normalised(array)
        path, mode = Path(part), COLOURS[self.preprocessing.channels]
        with needed_by(f"{self.what}: the picture {path}", "images"), _told(self.what, path):
            image = _upright(path)
            if MODES[image.mode] != mode:
                self.converted.append(path)
            array = np.asarray(image.convert(MODES[image.mode]).convert(mode)).reshape(*image.size[::-1], -1)
        return self.preprocessing.normalised(_fitted(f"{self.what}: {path}", array, self.preprocessing))

    def tell(self) -> None:
        if self.converted:
            grey = self.preprocessing.channels == 3
            first, more = self.converted[0], len(self.converted) - 1
            warnings.warn(
                f"{self.what}: {first}{f' and {more} more' if more else ''} "
                + ("is grey and became three equal channels" if grey else "has colours and became grey"),
                PictureWarning,
                stacklevel=4,
            )


# --- One file ---


@contextmanager
def _told(what: str, path: Path) -> Iterator[None]:
    """Whatever Pillow raises for a damaged file."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - an extra

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{what}: {path} is neither a PNG nor a JPEG picture") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{what}: {path} has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except (*UNREADABLE, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{what}: {path} cannot be read: {reason}") from error


def _upright(path: Path) -> "Image":
    """A file's picture, of a mode in `MODES`, opaque, turned as its EXIF says."""
    from PIL import Image, ImageOps  # noqa: PLC0415 - an extra

    if not is_picture(path):
        raise InputError(f"{path} must be a picture that ends in {', '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} must be a file")
    raw = path.read_bytes()
    image = Image.open(BytesIO(raw), formats=FORMATS)
    if image.format == "PNG":
        Image.open(BytesIO(raw), formats=FORMATS).verify()  # checksums, which decoding does not look at
        if raw[PNG_DEPTH] == 16:
            raise InputError(f"{path} has 16 bits a value: save it with 8")
        if getattr(image, "is_animated", False):
            raise InputError(f"{path} is animated: save the one frame that is meant")
    if image.mode not in MODES:
        raise InputError(f"{path} has colours of type {image.mode}: save it in RGB or grey")
    image.load()
    if "A" in image.mode or "transparency" in image.info:
        if image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
            raise InputError(f"{path} is transparent in places: save it with the background that is meant")
        image.info.pop("transparency", None)
    return ImageOps.exif_transpose(image)


# --- Size ---


def _fitted(what: str, picture: Bytes, preprocessing: Preprocessing) -> Bytes:
    """[height, width, channels] of the model's size, as timm makes it for evaluation."""
    if preprocessing.resize is None or not picture.size:
        return preprocessing.sized(what, picture)
    with needed_by(f"{what}: resizing", "images"):
        from PIL import Image  # noqa: PLC0415 - an extra
    assert preprocessing.interpolation is not None
    scaled = _scaled(preprocessing, *picture.shape[:2])
    if math.prod(scaled) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise InputError(f"{what} would be scaled to {scaled[0]} x {scaled[1]} pixels, more than Pillow allows")
    image = Image.fromarray(np.ascontiguousarray(picture if preprocessing.channels == 3 else picture[..., 0]))
    resized = image.resize(scaled[::-1], Image.Resampling[preprocessing.interpolation.upper()])
    height, width = preprocessing.size
    top, left = (round((have - want) / 2) for have, want in zip(scaled, preprocessing.size, strict=True))
    return np.asarray(resized.crop((left, top, left + width, top + height))).reshape(height, width, -1)


def _scaled(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """Height and width before the middle is cut out.

    Where that is a square, as torchvision's `Resize` of a number rounds; else as timm's `ResizeKeepRatio`.
    """
    target = [math.floor(size / preprocessing.crop_pct) for size in preprocessing.size]
    if preprocessing.resize == "squash":
        return target[0], target[1]
    if target[0] == target[1]:
        short, long = sorted((height, width))
        other = int(target[0] * long / short)
        return (target[0], other) if height <= width else (other, target[0])
    ratio = min(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)
