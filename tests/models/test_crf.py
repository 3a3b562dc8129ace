"""The linear-chain CRF against sums and maxima over all sequences of labels, one row at a time."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.tagged import LABELS
from kit.tiny import save_tiny
from torch import Tensor

from raydistill.config.student import EncoderStudent
from raydistill.config.training import Optimization
from raydistill.models.crf import (
    FORBIDDEN,
    Chains,
    LinearChain,
    best_sequences,
    k_best,
    log_likelihood,
    log_marginals,
)
from raydistill.models.head import TOKEN, Head
from raydistill.models.load import load_model, save_model
from raydistill.models.scorer import passed
from raydistill.models.student import build_student
from raydistill.tasks.token_classification.words import stray
from raydistill.train.optimizer import build_optimizer, set_rates

C = 3
Rows = tuple[Tensor, Tensor, Chains]
"""Emissions (M, C), scores (C + 1, C), and the rows."""


def made(lengths: list[int], begins: list[bool], seed: int, size: int = C) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    emissions = 2 * torch.randn(sum(lengths), size, generator=generator, dtype=torch.float64)
    scores = 2 * torch.randn(size + 1, size, generator=generator, dtype=torch.float64)
    return emissions, scores, Chains.of(torch.tensor(lengths), torch.tensor(begins))


def all_sequences(emissions: Tensor, scores: Tensor, begins: bool) -> dict[tuple[int, ...], float]:
    """The log-probability of every sequence of labels of a row (W, C), by hand."""
    found = {}
    for path in itertools.product(range(emissions.shape[1]), repeat=len(emissions)):
        total = float(scores[-1, path[0]]) if begins else 0.0
        total += sum(float(emissions[t, label]) for t, label in enumerate(path))
        found[path] = total + sum(float(scores[a, b]) for a, b in itertools.pairwise(path))
    partition = math.log(sum(map(math.exp, found.values())))
    return {path: total - partition for path, total in found.items()}


def by_row(lengths: list[int], begins: list[bool], rows: Rows) -> list[tuple[slice, dict[tuple[int, ...], float]]]:
    """The units of each row that has any, and its sequences."""
    ends = list(itertools.accumulate(lengths))
    parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    kept = [(part, begin) for part, begin in zip(parts, begins, strict=True) if part.stop > part.start]
    return [(part, all_sequences(rows[0][part], rows[1], begin)) for part, begin in kept]


SHAPES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_all_is_as_the_sum_over_all_sequences_says(shape: list[tuple[int, bool]], seed: int) -> None:
    lengths, begins = [list(column) for column in zip(*shape, strict=True)]
    rows = made(lengths, begins, seed)
    expected = by_row(lengths, begins, rows)
    marginals, k = log_marginals(*rows), 4
    assert marginals.shape == rows[0].shape
    labels, is_there = best_sequences(*rows, k)
    single, _ = best_sequences(*rows)
    units = k_best(*rows, k)
    for (part, sequences), there in zip(expected, is_there[rows[2].real.any(1)], strict=True):
        for t in range(part.stop - part.start):
            for label in range(C):
                share = sum(math.exp(nats) for path, nats in sequences.items() if path[t] == label)
                assert float(marginals[part][t, label]) == pytest.approx(math.log(share), abs=1e-9)
        best = sorted(sequences, key=lambda path: -sequences[path])[:k]
        assert there.tolist() == [i < len(best) for i in range(k)]
        assert [tuple(labels[part][:, i].tolist()) for i in range(len(best))] == best
        assert tuple(single[part][:, 0].tolist()) == best[0]
        given_before = log_likelihood(*rows, labels)[part].sum(0)
        assert given_before[: len(best)].tolist() == pytest.approx([sequences[path] for path in best], abs=1e-9)
        assert torch.equal(units[part][:, :k].long(), labels[part])
        assert (units[part][:, k + len(best) :] == FORBIDDEN).all()  # so that no sequence counts twice
        assert torch.equal(units[part][:, k : k + len(best)], log_likelihood(*rows, labels)[part][:, : len(best)])


def test_each_factor_is_the_probability_of_a_label_given_those_before_it() -> None:
    rows = made([4, 3], [True, False], 1)
    labels = torch.tensor([0, 2, 1, 1, 2, 2, 0])[:, None]
    found = log_likelihood(*rows, labels)[:, 0]
    for part, sequences in by_row([4, 3], [True, False], rows):
        path = tuple(labels[part][:, 0].tolist())
        for t in range(len(path)):
            so_far = [
                sum(math.exp(nats) for other, nats in sequences.items() if other[:n] == path[:n]) for n in (t, t + 1)
            ]
            assert float(found[part][t]) == pytest.approx(math.log(so_far[1] / so_far[0]), abs=1e-9)


def test_gradients_of_the_likelihood_are_exact() -> None:
    """Of the log partition by an emission: a marginal. So the likelihood's is the label minus the marginals."""
    emissions, scores, chains = made([5, 1, 3], [True, True, False], 2)
    emissions.requires_grad_()
    scores.requires_grad_()
    labels = torch.arange(9)[:, None] % C
    log_likelihood(emissions, scores, chains, labels).sum().backward()
    one_hot = torch.nn.functional.one_hot(labels[:, 0], C)
    torch.testing.assert_close(emissions.grad, one_hot - log_marginals(emissions, scores, chains).exp().detach())
    inputs = (emissions.detach().requires_grad_(), scores.detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda e, s: log_likelihood(e, s, chains, labels), inputs)
    assert torch.autograd.gradcheck(lambda e, s: log_marginals(e, s, chains), inputs)


def test_padding_and_other_rows_change_nothing() -> None:
    lengths, begins = [2, 7, 4], [True, False, True]
    rows = made(lengths, begins, 3)
    together = [log_marginals(*rows), best_sequences(*rows, 3)[0].double(), k_best(*rows, 3)]
    for i, start in enumerate([0, 2, 9]):
        part = slice(start, start + lengths[i])
        own = (rows[0][part], rows[1], Chains.of(torch.tensor([lengths[i]]), torch.tensor([begins[i]])))
        alone = [log_marginals(*own), best_sequences(*own, 3)[0].double(), k_best(*own, 3)]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[part], other, rtol=1e-12, atol=1e-12)


def test_without_transitions_it_is_softmax() -> None:
    emissions, scores, chains = made([3, 6], [True, True], 4)
    torch.testing.assert_close(log_marginals(emissions, 0 * scores, chains), emissions.log_softmax(-1))
    assert torch.equal(best_sequences(emissions, 0 * scores, chains)[0][:, 0], emissions.argmax(-1))


def test_a_long_row_stays_finite_in_single_precision() -> None:
    emissions, scores, chains = made([3000], [True], 5)
    single = log_marginals(20 * emissions.float(), 20 * scores.float(), chains)
    assert torch.isfinite(single).all()
    double = log_marginals(20 * emissions, 20 * scores, chains)
    assert float((single.exp() - double.exp()).abs().max()) < 0.02


def test_a_constrained_one_gives_no_stray_label_and_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    chain = LinearChain(LABELS, constrained=True)
    emissions = 3 * torch.randn(400, len(LABELS), generator=generator)
    lengths = torch.tensor([10] * 40)
    chains = Chains.of(lengths)
    plain = LinearChain(LABELS)
    strays = {}
    for name, one in (("constrained", chain), ("free", plain)):
        paths = best_sequences(emissions, one.scores(), chains)[0][:, 0].view(40, 10)
        strays[name] = sum(stray([LABELS[label] for label in row]) is not None for row in paths.tolist())
    assert strays["constrained"] == 0
    assert strays["free"] > 30
    several = best_sequences(emissions, chain.scores(), chains, 5)[0].T.reshape(-1, 10)
    assert all(stray([LABELS[label] for label in row]) is None for row in several.tolist())
    labels = best_sequences(emissions, chain.scores(), chains)[0]
    (-log_likelihood(emissions, chain.scores(), chains, labels)).sum().backward()
    gradient = chain.transitions.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert (gradient[~chain.allowed] == 0).all()
    assert (gradient[chain.allowed] != 0).any()


def test_a_later_window_may_begin_inside_an_entity() -> None:
    chain = LinearChain(LABELS, constrained=True)
    emissions = torch.zeros(2, len(LABELS))
    emissions[:, LABELS.index("I-ORG")] = 5.0
    for begins, expected in ((True, ["O", "B-ORG", "B-PER"]), (False, ["I-ORG"])):
        chains = Chains.of(torch.tensor([2]), torch.tensor([begins]))
        first = LABELS[int(best_sequences(emissions, chain.scores(), chains)[0][0, 0])]
        assert first in expected


def test_the_stored_scorer_reads_the_same() -> None:
    for seed in range(5):
        emissions, scores, chains = made([9], [True], seed)
        sums = passed(emissions, scores, lambda ways: ways.logsumexp(0)).log_softmax(-1)
        torch.testing.assert_close(sums, log_marginals(emissions, scores, chains))
        best = passed(emissions, scores, lambda ways: ways.amax(0)).argmax(-1)
        assert torch.equal(best, best_sequences(emissions, scores, chains)[0][:, 0])


def test_transitions_are_kept_in_the_config_and_follow_the_order_of_the_labels(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "encoder", "bert", classifier=False)
    head = Head(LABELS, kind=TOKEN)
    model = load_model(folder, head, sequences="constrained_crf", seed=1)
    chain = model.crf
    with torch.no_grad():
        chain.transitions.normal_(generator=torch.Generator().manual_seed(0))
    expected = chain.scores().detach().clone()
    save_model(model, folder, tmp_path / "saved")
    same = load_model(tmp_path / "saved", None)
    assert torch.equal(same.crf.scores(), expected)
    order = [4, 2, 0, 1, 3]
    other = load_model(tmp_path / "saved", Head(tuple(LABELS[i] for i in order), kind=TOKEN))
    assert torch.equal(other.crf.scores(), expected[[*order, 5]][:, order])
    save_model(other, folder, tmp_path / "again")
    back = load_model(tmp_path / "again", head)
    assert torch.equal(back.crf.scores(), expected)
    inputs = {"input_ids": torch.tensor([[2, 9, 10, 11, 3]])}
    torch.testing.assert_close(back(**inputs).logits, model(**inputs).logits)
    assert load_model(tmp_path / "saved", head, sequences="softmax").config.to_dict().get("crf") is None


def test_a_student_takes_over_its_teachers_transitions(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "encoder", "bert", classifier=False)
    teacher = load_model(folder, Head(LABELS, kind=TOKEN), sequences="crf", seed=1)
    with torch.no_grad():
        teacher.crf.transitions.normal_(generator=torch.Generator().manual_seed(0))

    def student(**shape: Any) -> Any:
        return build_student(teacher, EncoderStudent(num_layers=2, **shape), seed=0)

    assert torch.equal(student(head="crf").crf.transitions, teacher.crf.transitions)
    assert (student(head="crf", start="random").crf.transitions == 0).all()
    narrower = student(hidden_size=16, num_heads=2, head="constrained_crf").crf.scores()
    assert torch.equal(narrower[0, :2], teacher.crf.scores()[0, :2])
    assert narrower[0, 2] == FORBIDDEN
    assert getattr(student(), "crf", None) is None


def test_transitions_learn_faster_than_the_encoder_and_do_not_decay(tmp_path: Path) -> None:
    model = load_model(
        save_tiny(tmp_path / "encoder", "bert", classifier=False), Head(LABELS, kind=TOKEN), sequences="crf"
    )
    settings = Optimization(learning_rate=1e-4, weight_decay=0.5)
    optimizer = build_optimizer(list(model.parameters()), settings)
    set_rates(optimizer, 1e-4, 0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    own = groups[id(model.crf.transitions)]
    assert (own["lr"], own["weight_decay"]) == (pytest.approx(1e-2), 0.0)
    others = [groups[id(p)]["lr"] for p in model.parameters() if p is not model.crf.transitions]
    assert set(others) == {1e-4}
