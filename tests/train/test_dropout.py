"""Dropout by row: the same masks in any micro-batch and padding, and good ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kit.tiny import FAMILIES, tiny_classifier, tiny_inputs
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, XLNetConfig

from raydistill.cluster.device import Device
from raydistill.models.fields import set_dropout_config
from raydistill.train.dropout import RowDropout, check_dropout, has_dropout

CPU = torch.device("cpu")


def dropped(num_rows: int = 64, seed: int = 1, step: int = 2) -> RowDropout:
    return RowDropout(seed, step, np.arange(num_rows), CPU)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_dropped_alike_alone_and_among_others_and_whatever_its_padding(family, attention):
    model = tiny_classifier(family)
    if family != "deberta-v2":
        model.set_attn_implementation(attention)
    assert has_dropout(model)
    model.train()
    inputs, row_ids = tiny_inputs(family, length=20), np.array([70_000, 3, 8, 1, 5])
    lengths = inputs["attention_mask"].sum(1).tolist()

    def logits(rows: list[int], length: int, seed: int = 0, step: int = 7) -> torch.Tensor:
        with torch.no_grad(), RowDropout(seed, step, row_ids[rows], CPU):
            return model(**{name: tensor[rows, :length] for name, tensor in inputs.items()}).logits

    together = logits([0, 1, 2, 3, 4], 20)
    alone = torch.cat([logits([row], length) for row, length in enumerate(lengths)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[[4, 2]], logits([4, 2], 20), rtol=1e-4, atol=1e-4)
    others = [logits([0], 20, seed=1), logits([0], 20, step=8), model.eval()(**inputs).logits[:1]]
    assert all(float((other - together[:1]).abs().max().detach()) > 1e-2 for other in others)


@pytest.mark.parametrize("shape", [(64, 40, 48), (64, 3, 40, 40), (64, 600), (7, 40, 48)])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_as_independent_draws_would_be(shape, p):
    """Shares along every axis, and products of neighbours along it, within five deviations of what chance gives."""
    by_row = dropped()
    ones = torch.ones(shape)
    draws = torch.stack([by_row.drop(ones, p) for _ in range(4)])
    assert sorted(draws.unique().tolist()) == pytest.approx([0.0, 1 / (1 - p)])
    kept = (draws > 0).float()
    for axis in range(kept.dim()):
        share = kept.mean([other for other in range(kept.dim()) if other != axis])
        spread = (p * (1 - p) * len(share) / kept.numel()) ** 0.5
        assert float((share - (1 - p)).abs().max()) < 5 * spread
        products = (kept - (1 - p)) * (kept.roll(1, axis) - (1 - p))
        assert abs(float(products.mean())) < 5 * p * (1 - p) / kept.numel() ** 0.5


def test_the_gradient_passes_where_a_number_was_kept():
    values = torch.randn(64, 5, requires_grad=True)
    made = dropped().drop(values, 0.3)
    made.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(made, values * values.grad)


@pytest.mark.parametrize("how", ["plain", "bool", "float", "causal", "gqa"])
def test_attention_is_written_out_as_torch_defines_it(how):
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 4, 6, 8) for _ in range(3))
    more = {"scale": 0.2, "attn_mask": None, "is_causal": how == "causal"}
    if how in ("bool", "float"):
        more["attn_mask"] = torch.rand(3, 1, 6, 6) > 0.3 if how == "bool" else torch.randn(3, 1, 6, 6)
        more["attn_mask"][..., 0] = True if how == "bool" else 0.0
    if how == "gqa":
        key, value, more["enable_gqa"] = key[:, :2], value[:, :2], True
    expected = functional.scaled_dot_product_attention(query, key, value, **more)
    with dropped(3):
        almost = functional.scaled_dot_product_attention(query, key, value, dropout_p=1e-9, **more)
        torch.testing.assert_close(almost, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(functional.scaled_dot_product_attention(query, key, value, **more), expected)
        some = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.5, **more)
    assert float((some - expected).abs().max()) > 0.1


def test_families_that_do_not_go_by_row_are_told(toy):
    rows, device = toy.rows(), Device()
    every, one = np.arange(rows.num_rows), np.arange(1)
    model = tiny_classifier("bert")
    assert check_dropout("teacher.finetune", model, rows, every, device) == []
    assert check_dropout("teacher.finetune", model, rows, one, device) == []
    config = XLNetConfig(vocab_size=60, d_model=32, n_layer=1, n_head=4, d_inner=64, dropout=0.1)
    (note,) = check_dropout("s", AutoModelForSequenceClassification.from_config(config), rows, every, device)
    assert note.startswith("s: what a xlnet model drops does not go by row")
    set_dropout_config(config, 0.0)
    model = AutoModelForSequenceClassification.from_config(config)
    assert not has_dropout(model)
    assert check_dropout("s", model, rows, every, device) == []
