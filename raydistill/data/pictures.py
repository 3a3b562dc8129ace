"""Pictures: encoded ones looked at, and brought to the pixels that a model reads.

The image processor of the model's folder says how: what it gives is a line of the colours, 0 to 255, of a picture of
one size, so these are what is kept, a byte each, and the line is applied when a batch is made.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistill.errors import ConfigError, DataError, ModelError
from raydistill.models.folder import PROCESSOR

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
"""Of the names of files that hold a picture."""
PROBE_SIZE = 64
"""Of the plain pictures from which the line is read off."""
TOLERANCE = 0.05
"""Of 255: how far what a processor gives may be from the line; nine of transformers are 3e-5 from it at most."""
THUMBNAIL_SIZE = 96
PICTURES_PER_CALL = 256
"""Of the processor: bounds its memory."""
SINCE = (5, 18)
"""Version of transformers whose image processors need no torchvision."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An encoded picture, and what it is called."""

    name: str
    content: bytes


def decoded(content: bytes) -> Image:
    """The picture as ``models.scorer.opened`` gives it. Raises DataError for what is no picture, or a broken one."""
    from raydistill.models.scorer import opened

    try:
        image: Image = opened(content)
        return image
    except Exception as error:  # each of Pillow's formats has its own errors for what is damaged
        said = "it has no bytes" if not content else (str(error).strip() or type(error).__name__).splitlines()[0]
        said = "it is no picture of a format that is known" if "BytesIO" in said else said.rstrip(".")
        raise DataError(f"cannot be read as a picture: {said}.") from error


def is_readable(content: bytes) -> bool:
    """Whether it is a picture, and whole."""
    try:
        decoded(content)
    except DataError:
        return False
    return True


def sound(pictures: Sequence[bytes | None], names: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """The pictures as a column, null for those that cannot be read, and in another one why."""

    def fault(content: bytes | None, name: str) -> str | None:
        try:
            if content is None:
                return f"{name} is missing."
            decoded(content)
        except DataError as error:
            return f"{name} {error}"
        return None

    faults = at_once(lambda pair: fault(*pair), list(zip(pictures, names, strict=True)))
    kept = [None if why else content for content, why in zip(pictures, faults, strict=True)]
    return pa.array(kept, pa.large_binary()), pa.array(faults, pa.large_string())


def at_once(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What ``work`` makes of each item, on all cores: Pillow lets go of the interpreter while it decodes."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="pictures") as pool:
        return list(pool.map(work, items))


def thumbnail(content: bytes, size: int = THUMBNAIL_SIZE) -> str:
    """A small copy as a data URI, of pixels that are seen as such where the picture is small; ``size``: pixels of its
    longer side."""
    from PIL import Image

    image = decoded(content)
    share = size / max(image.size)
    width, height = (max(1, round(side * share)) for side in image.size)
    made = io.BytesIO()
    resample = Image.Resampling.NEAREST if share > 1 else Image.Resampling.BICUBIC
    image.resize((width, height), resample).save(made, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(made.getvalue()).decode()


@dataclass(frozen=True)
class Processor:
    """What the image processor of a model's folder makes of pictures."""

    shape: tuple[int, int, int]
    """Channels, height and width."""
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    """Of each channel, what a colour of 0 becomes, and a step of a colour, 0 to 255."""
    own: Any = None
    """The processor itself, where pictures are still to be brought to their pixels."""

    @classmethod
    def open(cls, folder: Path, size: tuple[int, int] | None = None) -> Processor:
        """The one in a folder, for pictures of its own ``size`` or of another height and width. ModelError where there
        is none, or one that does more than size and normalise."""
        own = load_processor(folder, size)
        black, white = (values_of(own, [plain(level)])[0] for level in (0, 255))
        middle = (slice(None), black.shape[1] // 2, black.shape[2] // 2)
        offset, scale = black[middle], (white[middle] - black[middle]) / 255
        if not scale.all():
            raise ModelError(f"The image processor in {folder} gives the same for black and white. Copy it again.")
        return cls(black.shape, tuple(offset.tolist()), tuple(scale.tolist()), own)

    def check_whole(self) -> None:
        """Refuse a processor that cuts off parts of a picture, or adds to it: boxes are shares of the whole; or that
        transformers' pipeline cannot make boxes with. Raises ModelError."""
        from PIL import Image

        if not hasattr(self.own, "post_process_object_detection"):
            raise ModelError(
                f"The image processor, {type(self.own).__name__}, makes no boxes of what a model finds. Save one for "
                f"detectors, such as YolosImageProcessor, as {PROCESSOR}."
            )

        width, height = 3 * PROBE_SIZE, 2 * PROBE_SIZE  # a quarter is light, on the left and at the top
        image = Image.new("RGB", (width, height))
        image.paste((255, 255, 255), (0, 0, width // 4, height))
        image.paste((255, 255, 255), (0, 0, width, height // 4))
        found = values_of(self.own, [image])[0]
        light = (found - per_channel(self.offset)) / per_channel(self.scale) > 127
        sides = light[:, light.shape[1] - 2 :].mean((0, 1)), light[:, :, light.shape[2] - 2 :].mean((0, 2))
        shares = [float(side.mean()) for side in sides]
        off = [abs(share - 0.25) * size for share, size in zip(shares, (found.shape[2], found.shape[1]), strict=True)]
        if found.shape != self.shape or max(off) > 1.5:
            raise ModelError(
                "The image processor does not bring the whole picture to one size: it crops or pads it, or keeps its "
                f"proportions. Set task.picture_size, [512, 512] say; do_center_crop in {PROCESSOR} has to be false."
            )

    def pixels(self, pictures: Sequence[bytes]) -> Pixels:
        """Encoded pictures as the model sees them, (N, C, H, W). Raises ModelError where the processor is no line."""
        values = np.concatenate(at_once(lambda one: values_of(self.own, [decoded(one)]), pictures))
        if values.shape[1:] != self.shape:
            raise ModelError(
                f"The image processor gives pictures of {values.shape[2]} x {values.shape[3]} pixels here, and of "
                f"{self.shape[1]} x {self.shape[2]} there; models read one size. Set size and crop_size in {PROCESSOR}."
            )
        exact = (values - per_channel(self.offset)) / per_channel(self.scale)
        rounded = exact.round().clip(0, 255)
        if np.abs(exact - rounded).max(initial=0) > TOLERANCE:
            raise ModelError(
                "The image processor does more than to size and normalise pictures, so they cannot be kept as pixels. "
                f"Name it in an issue; or set do_rescale and do_normalize alone in {PROCESSOR}."
            )
        return rounded.astype(np.uint8)

    def values(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """What a model is given of pixels (B, C, H, W)."""
        return pixels * per_channel(self.scale) + per_channel(self.offset)

    def encode(self, pictures: Iterable[bytes]) -> npt.NDArray[np.float32]:
        """What a model is given of encoded pictures, (B, C, H, W)."""
        return self.values(self.pixels(list(pictures)))

    def facts(self) -> dict[str, Any]:
        """All that ``values`` needs, in JSON types."""
        return {"shape": list(self.shape), "offset": list(self.offset), "scale": list(self.scale)}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Processor:
        """Of what ``facts`` told."""
        return cls(tuple(facts["shape"]), tuple(facts["offset"]), tuple(facts["scale"]))


def sized(size: tuple[int, int] | None) -> dict[str, Any]:
    """Settings of an image processor that brings all pictures to this height and width; None changes nothing."""
    return {} if size is None else {"size": {"height": size[0], "width": size[1]}, "do_pad": False}


def load_processor(folder: Path, size: tuple[int, int] | None = None) -> Any:
    """The image processor of a model's folder, on Pillow: torchvision's resizes otherwise, so that pixels would depend
    on what is installed; ``size``: see ``sized``. Raises ModelError where there is none, ConfigError for a transformers
    that lacks it."""
    from transformers import AutoImageProcessor

    from raydistill.models.checks import first_line
    from raydistill.models.load import quiet

    here = version("transformers")
    if tuple(int(part) for part in here.split(".")[:2]) < SINCE:
        raise ConfigError(
            f"Pictures need transformers {SINCE[0]}.{SINCE[1]} or later, which reads them without torchvision; here is "
            f"{here}: pip install -U transformers."
        )
    if not (folder / PROCESSOR).is_file():
        raise ModelError(
            f"{folder} has no {PROCESSOR}, which says how its model reads pictures. Put it there: "
            f'`AutoImageProcessor.from_pretrained(...).save_pretrained("{folder}")`.'
        )
    try:
        with quiet():
            options = {"local_files_only": True, "backend": "pil", **sized(size)}
            return AutoImageProcessor.from_pretrained(str(folder), **options)
    except Exception as error:  # transformers has no error class of its own: ValueError to ImportError
        raise ModelError(f"{folder / PROCESSOR} cannot be loaded: {first_line(error)}.") from error


def values_of(processor: Any, images: Sequence[Image]) -> npt.NDArray[np.float32]:
    """What a processor makes of pictures, (B, C, H, W) float32."""
    from raydistill.models.checks import first_line

    try:
        found = processor(list(images), return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(found, np.float32).reshape(len(images), *found.shape[-3:])
    except Exception as error:  # as above
        raise ModelError(f"The image processor cannot read a picture: {first_line(error)}.") from error


def plain(level: int) -> Image:
    """A picture of one grey."""
    from PIL import Image

    return Image.new("RGB", (PROBE_SIZE, PROBE_SIZE), (level, level, level))


def per_channel(numbers: Sequence[float]) -> npt.NDArray[np.float32]:
    """(C,) -> (C, 1, 1)."""
    return np.asarray(numbers, np.float32)[:, None, None]
