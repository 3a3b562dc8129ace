"""Losses against independent computations, and the properties that the base class promises."""

import math

import numpy as np
import pytest
import torch

from raydistill.config import ForwardKl as ForwardKlSettings
from raydistill.data.batches import Batch
from raydistill.losses import ForwardKl, HiddenCosine, HiddenMse, LogitMse, Loss, Losses, TaskLoss
from raydistill.tasks import TextClassification


def make_batch(labels: list[int], lengths: list[int] | None = None) -> Batch:
    lengths = lengths or [3] * len(labels)
    return Batch(np.arange(len(labels)), np.array(lengths, dtype=np.int32), np.array(labels))


def random_logits(rows: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 2


def kl_by_hand(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> list[float]:
    values = []
    for z_t, z_s in zip((teacher / temperature).tolist(), (student / temperature).tolist(), strict=True):
        norm_t, norm_s = (math.log(math.fsum(math.exp(z) for z in row)) for row in (z_t, z_s))
        terms = (math.exp(a - norm_t) * ((a - norm_t) - (b - norm_s)) for a, b in zip(z_t, z_s, strict=True))
        values.append(math.fsum(terms) * temperature**2)
    return values


@pytest.mark.parametrize("classes", [2, 3, 30522])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_forward_kl_equals_the_definition(classes, temperature):
    student, teacher = random_logits(3, classes, 0), random_logits(3, classes, 1)
    values = ForwardKl(temperature=temperature)({"logits": student}, {"logits": teacher}, make_batch([0, 0, 0]))
    assert values.tolist() == pytest.approx(kl_by_hand(teacher, student, temperature), rel=1e-4)


def test_forward_kl_has_the_direction_of_its_name():
    student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    value = ForwardKl(temperature=1.0)({"logits": student}, {"logits": teacher}, make_batch([0])).item()
    assert value == pytest.approx(kl_by_hand(teacher, student, 1.0)[0], rel=1e-5)
    assert abs(value - kl_by_hand(student, teacher, 1.0)[0]) > 0.05


def test_forward_kl_of_equal_logits_is_zero():
    logits = random_logits(5, 4, 0)
    values = ForwardKl()({"logits": logits + 3.0}, {"logits": logits}, make_batch([0] * 5))
    assert values.abs().max() < 1e-5


def test_gradient_scale_hardly_depends_on_temperature():
    student, teacher = random_logits(64, 5, 0) * 0.1, random_logits(64, 5, 1) * 0.1
    norms = []
    for temperature in (1.0, 4.0, 16.0):
        leaf = student.clone().requires_grad_()
        ForwardKl(temperature=temperature)({"logits": leaf}, {"logits": teacher}, make_batch([0] * 64)).sum().backward()
        norms.append(leaf.grad.norm().item())
    assert max(norms) / min(norms) < 1.1


def test_logit_mse_equals_the_definition():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    values = LogitMse()({"logits": student}, {"logits": teacher}, make_batch([0, 0]))
    assert values.tolist() == [2.5, 0.5]


def test_task_loss_counts_labeled_rows_only():
    task = TextClassification(("a", "b", "c"))
    logits = random_logits(4, 3, 0)
    batch = make_batch([2, -1, 0, -1])
    loss = TaskLoss(task)
    values = loss({"logits": logits}, {}, batch)
    by_hand = [torch.logsumexp(logits[i], 0).item() - logits[i, label].item() for i, label in ((0, 2), (2, 0))]
    assert values.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert loss.count(batch) == 2


def test_hidden_losses_equal_the_definition():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    signals = ({"hidden_states[2]": student}, {"hidden_states[4]": teacher})
    batch = make_batch([0, 0], [2, 3])
    mse = HiddenMse(((2, 4),), 4, 4)(*signals, batch)
    cosine = HiddenCosine(((2, 4),), 4, 4)(*signals, batch)
    assert mse.tolist() == pytest.approx([((s - t) ** 2).mean().item() for s, t in zip(student, teacher, strict=True)])
    expected = [1 - (s @ t / (s.norm() * t.norm())).item() for s, t in zip(student, teacher, strict=True)]
    assert cosine.tolist() == pytest.approx(expected, abs=1e-5)


def test_hidden_pairs_are_averaged():
    student = {"hidden_states[1]": torch.ones(3, 2), "hidden_states[2]": torch.ones(3, 2)}
    teacher = {"hidden_states[2]": torch.zeros(3, 2), "hidden_states[4]": torch.full((3, 2), 3.0)}
    values = HiddenMse(((1, 2), (2, 4)), 2, 2)(student, teacher, make_batch([0], [3]))
    assert values.tolist() == [2.5] * 3


def test_projection_where_widths_differ_is_trained():
    loss = HiddenMse(((1, 1),), 4, 6)
    value = loss({"hidden_states[1]": torch.randn(3, 4)}, {"hidden_states[1]": torch.randn(3, 6)}, make_batch([0], [3]))
    value.sum().backward()
    assert [tuple(p.shape) for p in loss.parameters()] == [(6, 4), (6,)]
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert not list(HiddenMse(((1, 1),), 4, 4).parameters())


def total_of(losses: Losses, logits: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
    return losses({"logits": logits}, {"logits": teacher}, batch, losses.counts([batch]))[0]


def test_a_weight_changes_loss_and_gradient_in_proportion():
    teacher, batch = random_logits(4, 3, 1), make_batch([0, 1, 2, 0])
    results = []
    for weight in (1.0, 3.0):
        leaf = random_logits(4, 3, 0).requires_grad_()
        total = total_of(Losses({"kd": ForwardKl(weight=weight)}), leaf, teacher, batch)
        total.backward()
        results.append((total.item(), leaf.grad))
    assert results[1][0] == pytest.approx(3 * results[0][0])
    torch.testing.assert_close(results[1][1], 3 * results[0][1])


def test_parts_of_a_batch_add_up_to_the_whole():
    """Uneven masks: the second part holds no labelled row at all."""
    losses = Losses({"kd": ForwardKl(), "task": TaskLoss(TextClassification(("a", "b", "c")), weight=0.5)})
    logits, teacher = random_logits(6, 3, 0), random_logits(6, 3, 1)
    whole = make_batch([0, 1, 2, -1, -1, -1])
    first, second = (Batch(whole.row_ids[s], whole.lengths[s], whole.labels[s]) for s in (slice(0, 4), slice(4, 6)))
    counts = losses.counts([first, second])
    assert counts == losses.counts([whole]) == [6, 3]
    parts = [
        losses({"logits": logits[s]}, {"logits": teacher[s]}, part, counts)[0]
        for s, part in ((slice(0, 4), first), (slice(4, 6), second))
    ]
    assert sum(parts).item() == pytest.approx(total_of(losses, logits, teacher, whole).item(), rel=1e-6)


def test_a_count_of_zero_gives_zero():
    losses = Losses({"task": TaskLoss(TextClassification(("a", "b")))})
    total, sums = losses({"logits": torch.randn(2, 2)}, {}, make_batch([-1, -1]), [0])
    assert total.item() == 0.0
    assert [s.item() for s in sums] == [0.0]


class PairDistance(Loss):
    """Differences inside groups of two rows."""

    student_needs = teacher_needs = frozenset({"logits"})
    group_size = 2

    def count(self, batch):
        return batch.num_rows // 2

    def forward(self, student, teacher, batch):
        n = 2 * self.count(batch)
        a, b = (z["logits"][:n].view(-1, 2, z["logits"].shape[-1]) for z in (student, teacher))
        return ((a[:, 0] - a[:, 1]).norm(dim=-1) - (b[:, 0] - b[:, 1]).norm(dim=-1)).square()


def test_group_size_of_several_losses_is_their_common_multiple():
    triple = PairDistance()
    triple.group_size = 3
    assert Losses({"a": PairDistance(), "b": triple, "c": ForwardKl()}).group_size == 6
    assert Losses({"c": ForwardKl()}).group_size == 1


def test_needs_are_the_union():
    task = TaskLoss(TextClassification(("a", "b")))
    losses = Losses({"kd": ForwardKl(), "h": HiddenMse(((1, 2), (2, 4)), 4, 4), "t": task})
    assert losses.teacher_needs == {"logits", "hidden_states[2]", "hidden_states[4]"}
    assert losses.student_needs == {"logits", "hidden_states[1]", "hidden_states[2]"}


def test_temperature_default_is_the_config_default():
    assert ForwardKl().temperature == ForwardKlSettings().temperature
