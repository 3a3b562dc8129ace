"""What is trained, what is decayed, and at which rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydistill.config.training import Optimization
from raydistill.errors import ConfigError
from raydistill.train.optimizer import build_optimizer, freeze, set_rates, trainable


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def decayed(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Weight decay of the parameters, by their number of dimensions."""
    return {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_vectors_are_never_decayed() -> None:
    """Neither at first, nor after the decay was set anew, nor where a checkpoint of other settings was restored."""
    parameters = trainable(make_model(), nn.Linear(2, 2))
    optimizer = build_optimizer(parameters, Optimization(learning_rate=0.5, weight_decay=0.1))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters) == 7
    assert decayed(optimizer) == {2: 0.1, 1: 0.0}
    set_rates(optimizer, 0.25, 0.2)
    assert decayed(optimizer) == {2: 0.2, 1: 0.0}
    later = build_optimizer(parameters, Optimization(weight_decay=0.3, learning_rate=1e-3))
    later.load_state_dict(optimizer.state_dict())
    set_rates(later, 0.125, 0.3)
    assert decayed(later) == {2: 0.3, 1: 0.0}
    assert [group["lr"] for group in later.param_groups] == [0.125, 0.125]


def test_a_step_follows_the_rate_and_the_decay() -> None:
    matrix, vector = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,)))
    optimizer = build_optimizer([matrix, vector], Optimization(learning_rate=0.1, weight_decay=0.5))
    matrix.grad, vector.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()  # AdamW's first step is the rate times the gradient's sign, after the decay of rate times weight
    assert matrix.detach().numpy() == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1, abs=1e-5)
    assert vector.detach().numpy() == pytest.approx(1 - 0.1, abs=1e-5)


def test_a_model_of_vectors_alone_has_one_group() -> None:
    optimizer = build_optimizer(list(nn.LayerNorm(4).parameters()), Optimization(learning_rate=1e-3))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]


def test_freezing_is_by_pattern_and_is_taken_back() -> None:
    model = make_model()
    freeze(model, ["0.*", "*.bias"], "stages.a.freeze")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"1.weight", "2.weight"}
    assert [tuple(p.shape) for p in trainable(model)] == [(4,), (3, 4)]
    freeze(model, [], "stages.b.freeze")
    assert len(trainable(model)) == 5
    with pytest.raises(ConfigError, match=r"stages.c.freeze: 'x\*' matches no .* like '0.weight' and '2.bias'"):
        freeze(model, ["0.*", "x*"], "stages.c.freeze")
    with pytest.raises(ConfigError, match=r"stages.d.freeze: .* nothing is left"):
        freeze(model, ["0.*", "1*", "*"], "stages.d.freeze")
    freeze(nn.Identity(), [], "stages.e.freeze")  # nothing to train, and nothing asked
