"""Models that read pictures: how many patches of one they see, and whether they are a stack of layers or of stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.errors import ModelError
from raydistill.models.checks import first_line
from raydistill.models.load import new_model

PATCH = 16
"""Pixels of a patch's side, in whose number a picture's cost is counted where a network knows no patches."""
FEWEST = 4
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Sight:
    """What a model sees of a picture: its patches, and others that it adds to them."""

    num_patches: int
    is_stack: bool
    """Whether each layer has states of just these; stages of a network of convolutions have maps of other sizes."""


def look(config: PreTrainedConfig, shape: tuple[int, int, int]) -> Sight:
    """What a model of this config sees of pictures (C, H, W); nothing is computed. ModelError where it cannot."""
    with torch.device("meta"):
        model = new_model(config, seed=0)
        try:
            output = model(pixel_values=torch.zeros(1, *shape), output_hidden_states=True)
        except Exception as error:  # whatever a model's code raises
            channels, height, width = shape
            raise ModelError(
                f"A {config.model_type} model of this config cannot read the teacher's pictures, {channels} channels "
                f"of {height} x {width} pixels: {first_line(error)}. Name a model for such pictures."
            ) from error
    sizes = {tuple(state.shape) for state in output.hidden_states or ()}
    if len(sizes) == 1 and len(size := sizes.pop()) == 3:
        return Sight(size[1], is_stack=True)
    return Sight(max(FEWEST, shape[1] * shape[2] // PATCH**2), is_stack=False)


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
