"""Models that read pictures: the patches or feature maps that they see, and maps of one size out of those of several.

A state is a grid of positions: a map (B, C, H, W) of a network of convolutions is flat, (B · H · W, C), as are the
patches of a transformer, before and behind which other tokens may stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.errors import ConfigError, ModelError
from raydistill.models.checks import first_line
from raydistill.models.fields import depth, is_staged
from raydistill.models.head import DETECTORS, OBJECTS, OF_PICTURES, is_focal, kind_of_head
from raydistill.models.load import new_model
from raydistill.models.signals import State

PATCH = 16
"""Pixels of a patch's side, in whose number a picture's cost is counted where a network knows no patches."""
FEWEST = 4
USUAL_SIZE = 64
"""Of pictures by which the widths of maps are found, where a config names none."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SEEN: dict[tuple[str, tuple[int, int, int]], Sight] = {}


class Grid(NamedTuple):
    """Where a state's positions lie in the picture: rows and columns from its upper left corner on, behind so many
    other tokens (``before``)."""

    before: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True)
class Sight:
    """What a model sees of a picture: its patches, and others that it adds to them."""

    num_patches: int
    is_stack: bool
    """Whether each layer has states of just these; stages of a network of convolutions have maps of other sizes."""
    states: tuple[State, ...]
    """Its hidden states, from 0 on, as the model gives them; none where they are neither lists of patches nor maps."""
    grids: tuple[Grid, ...]
    """How each of them lies in the picture; none where that is not known of all."""


def look(config: PreTrainedConfig, shape: tuple[int, int, int]) -> Sight:
    """What a model of this config sees of pictures (C, H, W); nothing is computed. ModelError where it cannot."""
    key = (type(config).__name__ + config.to_json_string(use_diff=False), shape)
    if key not in _SEEN:
        _SEEN[key] = _look(config, shape)
    return _SEEN[key]


def _look(config: PreTrainedConfig, shape: tuple[int, int, int]) -> Sight:
    cut: list[torch.Size] = []
    with torch.device("meta"):
        model = new_model(config, seed=0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # the first one cuts patches, where there are such
                module.register_forward_hook(lambda layer, given, output: cut.append(output.shape[2:]))
        try:
            found = [tuple(state.shape[1:]) for state in states_of_pictures(model, torch.zeros(1, *shape))]
        except Exception as error:  # whatever a model's code raises
            channels, height, width = shape
            raise ModelError(
                f"A {config.model_type} model of this config cannot read the teacher's pictures, {channels} channels "
                f"of {height} x {width} pixels: {first_line(error)}. Name a model for such pictures."
            ) from error
    if {len(size) for size in found} - {2, 3}:
        found = []
    states = tuple(State(s[0], s[1]) if len(s) == 2 else State(s[1] * s[2], s[0]) for s in found)
    behind = getattr(config, "num_detection_tokens", 0)
    known = [grid for size in found if (grid := _grid(size, cut[0] if cut else None, behind)) is not None]
    grids = tuple(known) if len(known) == len(found) else ()
    if len(set(found)) == 1 and len(found[0]) == 2:
        return Sight(states[0].positions, is_stack=True, states=states, grids=grids)
    cost = max(FEWEST, shape[1] * shape[2] // PATCH**2)
    return Sight(cost, is_stack=False, states=states, grids=grids)


def states_of_pictures(model: PreTrainedModel, pixels: Tensor) -> Sequence[Tensor]:
    """The hidden states of pictures (B, C, H, W). Of a focal detector nothing is computed behind its encoder, where
    some ask for numbers that tensors without data do not have."""
    found: list[Any] = []
    if not is_focal(model.config):
        return states_in(model(pixel_values=pixels, output_hidden_states=True))

    def stop(encoder: nn.Module, given: Any, output: Any) -> None:
        found.append(output.last_hidden_state)
        raise StopIteration

    detector: Any = model.base_model
    hook = detector.encoder.register_forward_hook(stop)
    try:
        model(pixel_values=pixels)
    except StopIteration:
        pass
    finally:
        hook.remove()
    states: Sequence[Tensor] = found[0]
    return states


def states_in(output: Any) -> Sequence[Tensor]:
    """The hidden states of a model's output; of a focal detector the maps that its encoder makes of the pictures, from
    the finest on."""
    maps = output.get("encoder_last_hidden_state")
    states: Sequence[Tensor] = maps if isinstance(maps, list | tuple) else output.hidden_states or ()
    return states


def _grid(size: tuple[int, ...], patches: torch.Size | None, behind: int) -> Grid | None:
    """The grid of a state of this size, (C, H, W) or (N, C), where it is known; ``patches``: height and width of those
    that were cut first; ``behind``: tokens that stand behind them."""
    if len(size) == 3:
        return Grid(0, size[1], size[2])
    if patches is None:
        return None
    before = size[0] - patches.numel() - behind
    if before >= 0:
        return Grid(before, patches[0], patches[1])
    side = math.isqrt(size[0])  # patches were joined on the way, and nothing stands beside them
    return Grid(0, side, side) if patches[0] == patches[1] and side**2 == size[0] else None


def states_of(config: PreTrainedConfig) -> tuple[State, ...]:
    """The hidden states of a model that reads pictures, for such ones as its config names: widths are those of all."""
    size = getattr(config, "image_size", None) or USUAL_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return look(config, (getattr(config, "num_channels", 3), height, width)).states


def last_state(config: PreTrainedConfig) -> int:
    """The number of a model's last hidden state, 0 being the first: that of its layers, or, of a network with stages,
    of the maps that follow the first one."""
    if is_staged(config) and kind_of_head(config) in OF_PICTURES:
        return max(len(states_of(config)) - 1, 0)
    return depth(config)


def state_widths(config: PreTrainedConfig) -> list[int]:
    """The width of each hidden state."""
    if is_staged(config):
        return [state.width for state in states_of(config)]
    return [int(config.hidden_size)] * (config.num_hidden_layers + 1)


def shape_of(inputs: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Channels, height and width of a batch's pictures. Raises ModelError where it has none."""
    if "pixel_values" not in inputs:
        raise ModelError(
            "How states lie in a picture depends on its size, and the batch has no pictures. Give it the models' "
            "inputs, with pixel_values (B, C, H, W)."
        )
    channels, height, width = inputs["pixel_values"].shape[1:]
    return channels, height, width


def coarsest(grids: Iterable[Grid]) -> tuple[int, int]:
    """Height and width of the smallest of some grids."""
    heights, widths = zip(*(grid.size for grid in grids), strict=True)
    return min(heights), min(widths)


def on_one_grid(states: Tensor, others: Tensor, grids: tuple[Grid, Grid], num_rows: int) -> tuple[Tensor, Tensor]:
    """States of two models of so many pictures, (B · N, C) and (B · M, K), at the same positions: the larger grid is
    brought to the size of the smaller one by adaptive average pooling, without the tokens that are none of it."""
    size = coarsest(grids)
    return on_grid(states, num_rows, grids[0], size), on_grid(others, num_rows, grids[1], size)


def on_grid(states: Tensor, num_rows: int, grid: Grid, size: tuple[int, int]) -> Tensor:
    """States of so many pictures, which lie on a grid, on one of this size, (B · N, C) -> (B · height · width, C)."""
    patches = states.unflatten(0, (num_rows, -1)).narrow(1, grid.before, grid.height * grid.width)
    if grid.size != size:
        maps = patches.transpose(1, 2).unflatten(2, grid.size)
        patches = F.adaptive_avg_pool2d(maps, size).flatten(2).transpose(1, 2)
    return patches.flatten(0, 1)


def check_head(config: PreTrainedConfig, wanted: str, name: str) -> None:
    """Refuse a model that reads no pictures, or whose head is not, and cannot become, one of the ``wanted`` kind;
    ``name``: of the setting and the model. Raises ConfigError."""
    kind = kind_of_head(config)
    if kind not in OF_PICTURES:
        fit = "YOLOS" if wanted == OBJECTS else "ViT or ResNet"
        raise ConfigError(f"{name} reads no pictures; name a model such as a {fit}.")
    if wanted == OBJECTS and config.model_type not in DETECTORS:
        raise ConfigError(
            f"{name}, a {config.model_type} model, is none of the detectors that can be trained here: "
            f"{', '.join(DETECTORS)}. Name one of these, such as hustvl/yolos-tiny or PekingU/rtdetr_r18vd."
        )
    if wanted != OBJECTS and kind == OBJECTS:
        raise ConfigError(f"{name} finds objects. Set task.type: object_detection, or name a classifier.")


def train_mode(model: nn.Module) -> None:
    """Turn to training, but for batch norms, which keep their statistics: what they would take from a micro-batch
    depends on its size, and on the number of workers."""
    model.train()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()


@torch.no_grad()
def settle(model: PreTrainedModel, sample: Iterable[Mapping[str, Tensor]]) -> None:
    """Set the statistics of all batch norms to those of a sample of rows, as they stay while it is trained."""
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for inputs in sample:
        model(**inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
