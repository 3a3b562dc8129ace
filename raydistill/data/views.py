"""Pictures as they are seen otherwise (data.augment): parts of them, brought to the whole size, and mirrored ones.

A ``crop`` is a box of a random share of the area and a random ratio of its sides, as torchvision's RandomResizedCrop
draws it. Szegedy et al. 2015, https://arxiv.org/abs/1409.4842, section 6. How a picture is seen depends on seed, epoch
and row alone, so a student and its teacher see the same: "patient and consistent", Beyer et al. 2022,
https://arxiv.org/abs/2106.05237.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from raydistill.config.data import Augment
from raydistill.data.pictures import Pixels
from raydistill.tasks.draws import fractions, hashed, row_keys
from raydistill.tasks.targets import Array

SMALLEST = 0.08
"""Share of the area that a crop has at least, where nothing is written."""
RATIO = 4 / 3
"""Of the sides of a crop, the longer to the shorter one, at most."""
TRIES = 10
"""Boxes that are drawn before the largest one in the middle is taken."""


@dataclass(frozen=True)
class Views:
    """How pictures are seen."""

    smallest: float | None
    """Share of the area that a crop has at least; None: pictures are seen as a whole."""
    mirrored: float
    """Share of the pictures that are turned left to right."""

    @classmethod
    def of(cls, augment: Augment) -> Self:
        """Those of the config. A copy that could differ in nothing else is always mirrored, any other every second
        time."""
        mirrored = 1.0 if augment.ways == ("flip",) and not augment.is_each_epoch else 0.5
        smallest = SMALLEST if augment.crop_area is None else augment.crop_area
        return cls(smallest if "crop" in augment.ways else None, mirrored if "flip" in augment.ways else 0.0)

    @classmethod
    def read(cls, told: Mapping[str, Any] | None) -> Self | None:
        """What ``info.json`` of a tokens artefact tells of them."""
        return None if told is None else cls(**told)

    def seen(self, pixels: Pixels, numbers: Array, epoch: tuple[int, int]) -> Pixels:
        """Pictures (B, C, H, W) of the rows with these ``numbers`` (B,) as an epoch, seed and number, shows them."""
        starts, sizes, is_mirrored = self._drawn(numbers, epoch, pixels.shape[2:])
        if self.smallest is not None:
            pixels = enlarged(pixels, starts, sizes)
        return np.where(is_mirrored[:, None, None, None], pixels[..., ::-1], pixels)

    def parts(self, numbers: Array, epoch: tuple[int, int], size: Sequence[int]) -> tuple[Array, Array]:
        """Which parts of pictures of this height and width are seen so, left, top, width and height as shares of them
        (B, 4), and which of them turned left to right (B,)."""
        starts, sizes, is_mirrored = self._drawn(numbers, epoch, size)
        return np.hstack([starts[:, ::-1], sizes[:, ::-1]]) / np.tile(size[::-1], 2), is_mirrored

    def _drawn(self, numbers: Array, epoch: tuple[int, int], size: Sequence[int]) -> tuple[Array, Array, Array]:
        """Where the parts begin, and their sizes, as ``boxes`` has them, and which are turned."""
        lots = np.arange(1, 4 + 2 * TRIES, dtype=np.uint64)
        drawn = fractions(hashed(row_keys(numbers, epoch)[:, None] + hashed(lots)))
        whole = np.tile(size, (len(numbers), 1))
        height, width = size
        crops = boxes(drawn[:, 1:], height, width, self.smallest) if self.smallest else (np.zeros_like(whole), whole)
        return *crops, drawn[:, 0] < self.mirrored


def boxes(drawn: Array, height: int, width: int, smallest: float) -> tuple[Array, Array]:
    """Crops of pictures of this size: where they begin, top and left, and height and width, (B, 2) each. ``drawn``:
    numbers from 0 to 1, (B, 2 · ``TRIES`` + 2)."""
    areas = height * width * (smallest + (1 - smallest) * drawn[:, :TRIES])
    ratios = np.exp(math.log(RATIO) * (2 * drawn[:, TRIES : 2 * TRIES] - 1))
    tall, wide = (np.rint(np.sqrt(sides)).astype(np.int64) for sides in (areas / ratios, areas * ratios))
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    rows, first = np.arange(len(drawn)), fits.argmax(axis=1)
    sizes = np.column_stack([tall[rows, first], wide[rows, first]])
    room = np.array([height, width])
    middle = np.minimum(room, np.rint(room[::-1] * RATIO).astype(np.int64))
    found = fits.any(axis=1, keepdims=True)
    sizes = np.where(found, sizes, middle)
    return np.where(found, np.floor(drawn[:, -2:] * (room - sizes + 1)), (room - middle) // 2).astype(np.int64), sizes


def enlarged(pixels: Pixels, starts: Array, sizes: Array) -> Pixels:
    """Each picture's box, bilinearly brought to the size of the whole, (B, C, H, W) -> (B, C, H, W).

    One side after the other, each with lines of pixels that lie together in memory, which are copied as wholes: 1.4 ms
    of one core for 3 x 224 x 224, where a forward pass of a ViT-Tiny takes 43.
    """
    num_rows, channels, height, width = pixels.shape
    columns = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(num_rows * width, channels * height)
    wide = blended(columns, *neighbours(starts[:, 1], sizes[:, 1], width))
    lines = np.ascontiguousarray(wide.reshape(num_rows, width, channels, height).transpose(0, 2, 3, 1))
    starts, sizes = (np.repeat(side[:, 0], channels) for side in (starts, sizes))
    tall = blended(lines.reshape(-1, width), *neighbours(starts, sizes, height))
    return np.rint(tall).astype(np.uint8).reshape(pixels.shape)


def neighbours(starts: Array, sizes: Array, length: int) -> tuple[Array, Array, Array]:
    """Of the boxes (N,) along one side of pictures that lie one after another, for each new pixel the two old ones that
    it lies between, and how far it is from the first, (N · ``length``,) each. Centres of pixels lie at halves; beyond
    the outermost ones a box goes on as it ends."""
    places = (np.arange(length) + 0.5) * (sizes[:, None] / length) - 0.5
    places = places.clip(0, sizes[:, None] - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, sizes[:, None] - 1)
    first = (np.arange(len(starts)) * length + starts)[:, None]
    return (first + low).ravel(), (first + high).ravel(), (places - low).astype(np.float32).ravel()


def blended(lines: Array, low: Array, high: Array, distance: Array) -> Array:
    """Lines of pixels (M, K) between two of these each, float32, (N, K)."""
    near, far = (lines[picked].astype(np.float32) for picked in (low, high))
    far -= near
    far *= distance[:, None]
    near += far
    return near
