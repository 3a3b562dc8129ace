"""Models that read pictures: the patches or feature maps that they see, and maps of one size out of those of several.

A state is a grid of positions: a map (B, C, H, W) of a network of convolutions is flat, (B · H · W, C), as are the
patches of a transformer, before which other tokens may stand. Grids are squares: the number of their positions tells
their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.errors import ConfigError, ModelError
from raydistill.models.checks import first_line
from raydistill.models.fields import depth, is_staged
from raydistill.models.head import DETECTORS, IMAGE, OBJECTS, OF_PICTURES, kind_of_head
from raydistill.models.load import new_model
from raydistill.models.signals import State

PATCH = 16
"""Pixels of a patch's side, in whose number a picture's cost is counted where a network knows no patches."""
FEWEST = 4
USUAL_SIZE = 64
"""Of pictures by which the widths of maps are found, where a config names none."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SEEN: dict[tuple[str, tuple[int, int, int]], Sight] = {}


@dataclass(frozen=True)
class Sight:
    """What a model sees of a picture: its patches, and others that it adds to them."""

    num_patches: int
    is_stack: bool
    """Whether each layer has states of just these; stages of a network of convolutions have maps of other sizes."""
    states: tuple[State, ...]
    """Its hidden states, from 0 on, as the model gives them; none where they are neither lists of patches nor maps."""
    is_square: bool
    """Whether all of them are square grids, behind the tokens that are no patches."""


def look(config: PreTrainedConfig, shape: tuple[int, int, int]) -> Sight:
    """What a model of this config sees of pictures (C, H, W); nothing is computed. ModelError where it cannot."""
    key = (type(config).__name__ + config.to_json_string(use_diff=False), shape)
    if key not in _SEEN:
        _SEEN[key] = _look(config, shape)
    return _SEEN[key]


def _look(config: PreTrainedConfig, shape: tuple[int, int, int]) -> Sight:
    grids: list[torch.Size] = []
    with torch.device("meta"):
        model = new_model(config, seed=0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # the first one cuts patches, where there are such
                module.register_forward_hook(lambda layer, given, output: grids.append(output.shape[2:]))
        try:
            output = model(pixel_values=torch.zeros(1, *shape), output_hidden_states=True)
        except Exception as error:  # whatever a model's code raises
            channels, height, width = shape
            raise ModelError(
                f"A {config.model_type} model of this config cannot read the teacher's pictures, {channels} channels "
                f"of {height} x {width} pixels: {first_line(error)}. Name a model for such pictures."
            ) from error
    found = [tuple(state.shape[1:]) for state in output.hidden_states or ()]
    if {len(size) for size in found} - {2, 3}:
        found = []
    states = tuple(State(s[0], s[1]) if len(s) == 2 else State(s[1] * s[2], s[0]) for s in found)
    patches = grids[0] if grids else torch.Size((0, 0))
    is_square = all(_is_square(size, patches) for size in found)
    if len(set(found)) == 1 and len(found[0]) == 2:
        return Sight(states[0].positions, is_stack=True, states=states, is_square=is_square)
    cost = max(FEWEST, shape[1] * shape[2] // PATCH**2)
    return Sight(cost, is_stack=False, states=states, is_square=is_square)


def _is_square(size: tuple[int, ...], patches: torch.Size) -> bool:
    """Whether a state's grid is what its number of positions says; ``patches``: height and width of the first ones."""
    if len(size) == 3:
        return size[1] == size[2]
    grid = math.isqrt(size[0]) ** 2
    is_whole = size[0] < patches.numel()  # patches were joined on the way, and nothing stands before them
    return grid == size[0] if is_whole else patches[0] == patches[1] and grid == patches.numel()


def states_of(config: PreTrainedConfig) -> tuple[State, ...]:
    """The hidden states of a model that reads pictures, for such ones as its config names: widths are those of all."""
    size = getattr(config, "image_size", None) or USUAL_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return look(config, (getattr(config, "num_channels", 3), height, width)).states


def last_state(config: PreTrainedConfig) -> int:
    """The number of a model's last hidden state, 0 being the first: that of its layers, or, of a network with stages,
    of the maps that follow the first one."""
    if is_staged(config) and kind_of_head(config) == IMAGE:
        return max(len(states_of(config)) - 1, 0)
    return depth(config)


def state_widths(config: PreTrainedConfig) -> list[int]:
    """The width of each hidden state."""
    if is_staged(config):
        return [state.width for state in states_of(config)]
    return [int(config.hidden_size)] * (config.num_hidden_layers + 1)


def on_one_grid(states: Tensor, others: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """States of two models of so many pictures, (B · N, C) and (B · M, K), at the same positions: the larger grid is
    brought to the size of the smaller one by adaptive average pooling, without the tokens before it."""
    if len(states) == len(others):
        return states, others
    side = min(math.isqrt(len(one) // num_rows) for one in (states, others))
    return on_grid(states, num_rows, side), on_grid(others, num_rows, side)


def on_grid(states: Tensor, num_rows: int, side: int) -> Tensor:
    """States of so many pictures on a grid of this side, (B · N, C) -> (B · side², C)."""
    patches = states.unflatten(0, (num_rows, -1))
    own = math.isqrt(patches.shape[1])
    patches = patches[:, patches.shape[1] - own**2 :]
    if own != side:
        maps = patches.transpose(1, 2).unflatten(2, (own, own))
        patches = F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
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
            f"{', '.join(DETECTORS)}. Name one of these, such as hustvl/yolos-tiny."
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
