"""Losses against independent computations, and the properties that the base class promises."""

import math

import numpy as np
import pytest
import torch
from kit.losses import PairDistance
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight
from transformers import BertConfig

from raydistill.config import losses as config
from raydistill.config.losses import ForwardKl as ForwardKlSettings
from raydistill.config.losses import Schedule, largest
from raydistill.config.training import Stage as StageSettings
from raydistill.data.batches import Batch
from raydistill.losses import (
    CosinePairs,
    Dist,
    Dkd,
    ForwardKl,
    HiddenCosine,
    HiddenMse,
    Jsd,
    LogitMse,
    Losses,
    ReverseKl,
    SoftCrossEntropy,
    TaskLoss,
    build_losses,
    build_stages,
    signal_sizes,
)
from raydistill.tasks import Targets, TextClassification
from raydistill.tasks.multi_label import MultiLabelClassification


def make_batch(labels: list[int], lengths: list[int] | None = None) -> Batch:
    lengths = lengths or [3] * len(labels)
    known = np.array(labels)
    targets = Targets(np.maximum(known, 0), known >= 0)
    return Batch(np.arange(len(labels)), np.array(lengths, dtype=np.int32), targets)


def random_logits(rows: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 2


def kl_by_hand(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> list[float]:
    values = []
    for z_t, z_s in zip((teacher / temperature).tolist(), (student / temperature).tolist(), strict=True):
        norm_t, norm_s = (math.log(math.fsum(math.exp(z) for z in row)) for row in (z_t, z_s))
        terms = (math.exp(a - norm_t) * ((a - norm_t) - (b - norm_s)) for a, b in zip(z_t, z_s, strict=True))
        values.append(math.fsum(terms) * temperature**2)
    return values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_are_given_what_a_model_computed_in_half_precision_as_float32(dtype):
    """One of a user's own need not know; its projection has float32 weights."""
    batch, loss = make_batch([0, 0], [2, 3]), HiddenMse(((1, 1),), 4, 6)
    student, teacher = ({"hidden_states[1]": random_logits(5, width, width).to(dtype)} for width in (4, 6))
    _, sums = Losses({"it": loss})(student, teacher, batch, [5.0])
    exact = ({name: states.float() for name, states in side.items()} for side in (student, teacher))
    assert torch.equal(sums[0], loss(*exact, batch).sum().detach())


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


def test_parts_of_a_batch_add_up_to_the_whole():
    """Uneven masks: the second part holds no labelled row at all."""
    losses = Losses({"kd": ForwardKl(), "task": TaskLoss(TextClassification(("a", "b", "c")), weight=0.5)})
    logits, teacher = random_logits(6, 3, 0), random_logits(6, 3, 1)
    whole = make_batch([0, 1, 2, -1, -1, -1])
    first, second = (
        Batch(whole.row_ids[s], whole.lengths[s], whole.targets.take(s)) for s in (slice(0, 4), slice(4, 6))
    )
    counts = losses.counts([first, second])
    assert counts == losses.counts([whole]) == [6, 3]
    parts = [
        losses({"logits": logits[s]}, {"logits": teacher[s]}, part, counts)[0]
        for s, part in ((slice(0, 4), first), (slice(4, 6), second))
    ]
    assert sum(parts).item() == pytest.approx(total_of(losses, logits, teacher, whole).item(), rel=1e-6)


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_of_zero_gives_zero(count):
    """No gradient either: AdamW would decay what has a gradient of zeros."""
    losses = Losses({"task": TaskLoss(TextClassification(("a", "b")))})
    total, sums = losses({"logits": torch.randn(2, 2, requires_grad=True)}, {}, make_batch([-1, -1]), [count])
    assert total.item() == 0.0
    assert not total.requires_grad
    assert [s.item() for s in sums] == [0.0]


@pytest.mark.parametrize(
    ("labels", "counts"),
    [([1, -1, 0], [4, 6, 6]), ([1], [1, 1, 1]), ([-1], [4, 6, 6]), ([-1, -1], [0, 2, 2]), ([2, 0], [2, 0, 2])],
)
def test_the_total_is_the_weighted_sum_of_the_means(labels, counts):
    terms = {
        "task": TaskLoss(TextClassification(("a", "b", "c")), weight=0.5),
        "kd": ForwardKl(3.0),
        "mse": LogitMse(0.2),
    }
    student, teacher, batch = (
        random_logits(len(labels), 3, 0).requires_grad_(),
        random_logits(len(labels), 3, 1),
        make_batch(labels),
    )
    total, sums = Losses(terms)({"logits": student}, {"logits": teacher}, batch, counts)
    each = [loss({"logits": student}, {"logits": teacher}, batch).sum().item() for loss in terms.values()]
    by_hand = [value if count else 0.0 for value, count in zip(each, counts, strict=True)]
    assert [s.item() for s in sums] == pytest.approx(by_hand)
    assert not any(s.requires_grad for s in sums)
    weighted = zip((0.5, 3.0, 0.2), by_hand, counts, strict=True)
    assert total.item() == pytest.approx(sum(w * value / max(count, 1) for w, value, count in weighted))


def test_every_term_has_a_count():
    with pytest.raises(ValueError, match="shorter"):
        Losses({"kd": ForwardKl(), "mse": LogitMse()})({}, {}, make_batch([]), [0])


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


def test_defaults_are_those_of_the_config():
    assert ForwardKl().temperature == ForwardKlSettings().temperature
    task = TextClassification(("a", "b"))
    for loss in (ForwardKl(), LogitMse(), TaskLoss(task), HiddenMse(((1, 1),), 4, 4), PairDistance()):
        assert loss.weight == ForwardKlSettings().weight


KINDS = {
    "task": (TaskLoss, config.TaskLoss(weight=0.1)),
    "kd": (ForwardKl, config.ForwardKl(weight=0.2, temperature=5.0)),
    "mse": (LogitMse, config.LogitMse(weight=0.3)),
    "hidden": (HiddenMse, config.HiddenMse(weight=0.4, layers="last")),
    "cosine": (HiddenCosine, config.HiddenCosine(weight=0.6, layers=((1, 2),))),
}


def test_every_type_of_the_config_becomes_its_loss():
    task, student, teacher = TextClassification(("a", "b")), BertConfig(hidden_size=8), BertConfig(hidden_size=12)
    student.num_hidden_layers, teacher.num_hidden_layers = 2, 4
    stages = {
        "one": StageSettings(losses={name: term for name, (_, term) in KINDS.items()}),
        "two": StageSettings(losses={"mse": KINDS["mse"][1]}),
    }
    state = torch.random.get_rng_state()
    built = build_stages(stages, task, student, teacher, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's draws do not depend on its losses
    assert list(built) == ["one", "two"]
    sizes = signal_sizes(built, teacher, num_units=10, num_tokens=70)
    assert sizes == {"logits": 2 * 4 * 10, "hidden_states[4]": 12 * 2 * 70, "hidden_states[2]": 12 * 2 * 70}
    losses = built["one"].terms
    assert {name: loss.role for name, loss in losses.items()} == {name: term.role for name, (_, term) in KINDS.items()}
    assert {name: (type(loss), loss.weight) for name, loss in losses.items()} == {
        name: (kind, term.weight) for name, (kind, term) in KINDS.items()
    }
    assert losses["kd"].temperature == 5.0
    assert losses["task"].task is task
    assert (losses["hidden"].pairs, losses["cosine"].pairs) == (((2, 4),), ((1, 2),))
    assert all(projection.weight.shape == (12, 8) for projection in losses["hidden"].projections)
    same, other = (build_stages(stages, task, student, teacher, seed=seed)["one"] for seed in (3, 4))
    weights = [next(iter(made["hidden"].parameters())) for made in (built["one"], same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert list(build_losses({"task": KINDS["task"][1]}, task, student, None, seed=0).terms) == ["task"]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_of_labels_are_the_divergence_of_coins(temperature):
    """Each label is a coin of its own; against torch.distributions, and with gradients of like size over T."""
    student, teacher = random_logits(4, 3, 0).requires_grad_(), random_logits(4, 3, 1)
    loss = ForwardKl(temperature=temperature, kind="bernoulli")
    values = loss({"logits": student}, {"logits": teacher}, make_batch([0] * 4))
    p, q = (torch.distributions.Bernoulli(logits=z / temperature) for z in (teacher, student))
    expected = torch.distributions.kl_divergence(p, q).mean(-1) * temperature**2
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    gradient = torch.autograd.grad(values.sum(), student)[0]
    slope = temperature * (torch.sigmoid(student / temperature) - torch.sigmoid(teacher / temperature)) / 3
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


LABELS = ("a", "b", "c")
WEIGHTS = {"a": 2.0, "c": 0.25}


def classes_by_hand(logits: torch.Tensor, labels: list[int], weights: list[float], smoothing: float) -> list[float]:
    """Loops in float64: a share of the label is spread over all classes, each with its weight (torch's definition)."""
    found = []
    for row, label in zip(logits.double().tolist(), labels, strict=True):
        norm = math.log(math.fsum(math.exp(z) for z in row))
        nats = [norm - z for z in row]
        spread = math.fsum(w * n for w, n in zip(weights, nats, strict=True)) / len(row)
        found.append((1 - smoothing) * weights[label] * nats[label] + smoothing * spread)
    return found


def labels_by_hand(logits: torch.Tensor, targets: np.ndarray, weights: list[float], smoothing: float) -> list[float]:
    found = []
    for row, yes in zip(logits.double().tolist(), targets.tolist(), strict=True):
        soft = [(1 - smoothing) * y + smoothing / 2 for y in yes]
        terms = [
            w * y * math.log1p(math.exp(-z)) + (1 - y) * math.log1p(math.exp(z))
            for z, y, w in zip(row, soft, weights, strict=True)
        ]
        found.append(math.fsum(terms) / len(row))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_class_weights_and_smoothing_of_classes(weights, smoothing):
    term = config.TaskLoss(class_weights=weights, label_smoothing=smoothing)
    loss = build_losses({"task": term}, TextClassification(LABELS), None, None, seed=0)["task"]
    logits, labels = random_logits(5, 3, 0), [0, 2, -1, 1, 2]
    kept = [i for i in labels if i >= 0]
    values = loss({"logits": logits}, {}, make_batch(labels))
    known = logits[torch.tensor(labels) >= 0]
    factors = [(weights or {}).get(name, 1.0) for name in LABELS]
    assert values.tolist() == pytest.approx(classes_by_hand(known, kept, factors, smoothing), rel=1e-5)
    torch_mean = torch.nn.functional.cross_entropy(
        known, torch.tensor(kept), torch.tensor(factors), label_smoothing=smoothing
    )
    total = sum(factors[i] for i in kept)  # torch divides by the weights, which another worker's rows would change
    assert float(values.sum()) / total == pytest.approx(float(torch_mean), rel=1e-5)
    assert loss.count(make_batch(labels)) == len(values) == 4
    assert not loss.state_dict()  # nothing of it is in a checkpoint


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_class_weights_and_smoothing_of_several_labels(weights, smoothing):
    term = config.TaskLoss(class_weights=weights, label_smoothing=smoothing)
    loss = build_losses({"task": term}, MultiLabelClassification(LABELS), None, None, seed=0)["task"]
    targets = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.int8)
    labeled = np.array([True, True, False, True])
    batch = Batch(np.arange(4), np.full(4, 3, np.int32), Targets(targets, labeled))
    logits = random_logits(4, 3, 1)
    factors = [(weights or {}).get(name, 1.0) for name in LABELS]
    expected = labels_by_hand(logits[torch.from_numpy(labeled)], targets[labeled], factors, smoothing)
    assert loss({"logits": logits}, {}, batch).tolist() == pytest.approx(expected, rel=1e-5)


def test_balanced_classes_count_as_much():
    """Whatever the rows that have no label say: scikit-learn's weights, of mean 1 over the labelled rows."""
    labels = np.array([0] * 6 + [1] * 3 + [3] * 1 + [2] * 5)
    targets = Targets(labels, labels != 2)
    task, balanced = TextClassification(("a", "b", "none", "d")), config.TaskLoss(class_weights="balanced")
    loss = build_losses({"task": balanced}, task, None, None, seed=0, targets=targets)["task"]
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels[labels != 2])
    assert loss.class_weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert loss.class_weights[2] == 1.0
    assert float(loss.class_weights[torch.from_numpy(labels[labels != 2])].mean()) == pytest.approx(1.0)
    several = MultiLabelClassification(LABELS)
    rows = Targets(np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]], np.int8), np.array([True] * 3 + [False]))
    assert several.balanced_weights(rows).tolist() == [2.0, 1.0, 1.0]  # one yes to two no; none; all


def test_a_weighted_loss_does_not_depend_on_how_rows_are_divided():
    """The sum over micro-batches and workers, each divided by the count of all, is that of the whole batch."""
    term = config.TaskLoss(weight=0.7, class_weights=WEIGHTS, label_smoothing=0.1)
    losses = build_losses({"task": term}, TextClassification(LABELS), None, None, seed=0)
    logits, labels = random_logits(6, 3, 2).requires_grad_(), [0, 2, 1, -1, 0, 2]
    whole, _ = losses({"logits": logits}, {}, make_batch(labels), [5.0])
    expected = torch.autograd.grad(whole, logits)[0]
    found = torch.zeros_like(expected)
    for start, end in ((0, 1), (1, 4), (4, 6)):
        part, _ = losses({"logits": logits[start:end]}, {}, make_batch(labels[start:end]), [5.0])
        found += torch.autograd.grad(part, logits, retain_graph=True)[0]
    torch.testing.assert_close(found, expected)


def test_a_schedule_is_a_function_of_the_share_of_steps():
    linear = Schedule(start=1.0, end=0.0, over=0.5)
    assert [linear.at(share) for share in (0, 0.25, 0.5, 1)] == [1.0, 0.5, 0.0, 0.0]
    cosine = Schedule(type="cosine", start=4.0, end=2.0)
    assert [cosine.at(share) for share in (0, 0.5, 1)] == pytest.approx([4.0, 3.0, 2.0])
    assert cosine.at(0.25) == pytest.approx(3 + math.cos(math.pi / 4))
    assert (largest(linear), largest(Schedule(start=0.1, end=2)), largest(0.5)) == (1.0, 2.0, 0.5)


def test_weight_and_temperature_follow_their_schedules():
    loss = ForwardKl(weight=Schedule(start=1.0, end=0.0), temperature=Schedule(start=4.0, end=2.0))
    losses = Losses({"kd": loss, "task": LogitMse(weight=3.0)})
    for share in (0.0, 0.5, 1.0, 0.5):  # in any order: nothing is remembered
        losses.at(share)
        assert loss.scheduled == {"weight": pytest.approx(1 - share), "temperature": pytest.approx(4 - 2 * share)}
        assert losses.terms["task"].scheduled == {}
        assert losses.terms["task"].weight == 3.0


@pytest.mark.parametrize("bad", [{"start": 0, "end": 2}, {"start": 1, "end": 0}])
def test_a_temperature_stays_above_zero(bad):
    with pytest.raises(ValidationError, match="has to stay above 0"):
        ForwardKlSettings.model_validate({"temperature": bad})


def cosine_pairs_by_hand(states: torch.Tensor, lengths: list[int], labels: list[int], group: int) -> list[float]:
    """Loops in float64: each labelled row's mean over its partners with the same label, and over the others."""
    rows, start = [], 0
    for length in lengths:
        rows.append(states[start : start + length].double().mean(0))
        start += length
    values = []
    for first in range(0, len(rows), group):
        known = [i for i in range(first, min(first + group, len(rows))) if labels[i] >= 0]
        for i in known:
            kinds: dict[bool, list[float]] = {}
            for j in known:
                if i != j:
                    cosine = float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm()))
                    same = labels[i] == labels[j]
                    kinds.setdefault(same, []).append((cosine - same) ** 2)
            if kinds:
                values.append(sum(sum(found) / len(found) for found in kinds.values()) / len(kinds))
    return values


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1, 0, 2], [0, 0, 0, 0, 1, -1, -1], [-1, 0, 0, -1, 2, 1, 0]])
def test_cosine_pairs_equal_the_definition(labels):
    lengths = [3, 1, 4, 2, 5, 2, 3]
    states = torch.randn(sum(lengths), 8, generator=torch.Generator().manual_seed(0))
    batch, loss = make_batch(labels, lengths), CosinePairs(2, group_size=4)
    values = loss({"hidden_states[2]": states}, {}, batch)
    expected = cosine_pairs_by_hand(states, lengths, labels, 4)
    assert len(expected) == loss.count(batch)
    assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_cosine_pairs_draw_equal_labels_together_and_need_no_teacher():
    states = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    batch, loss = make_batch([0, 1] * 4, [1] * 8), CosinePairs(1, group_size=8)
    optimizer = torch.optim.SGD([states], lr=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss({"hidden_states[1]": states}, {}, batch).mean().backward()
        optimizer.step()
    unit = torch.nn.functional.normalize(states.detach(), dim=-1)
    assert (unit @ unit.T)[0, 2::2].min() > 0.95
    assert (unit @ unit.T)[0, 1::2].abs().max() < 0.1
    assert not loss.teacher_needs


def softmax_by_hand(row: list[float], temperature: float) -> list[float]:
    largest = max(row)
    powers = [math.exp((z - largest) / temperature) for z in row]
    return [power / math.fsum(powers) for power in powers]


def kl_of(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson_of(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def soft_by_hand(
    name: str, p_teacher: list[list[float]], p_student: list[list[float]], labels: list[int]
) -> list[float]:
    """Each loss from its definition, row by row in float64, without T²."""
    values = []
    for i, (p, q) in enumerate(zip(p_teacher, p_student, strict=True)):
        target = labels[i] if labels[i] >= 0 else p.index(max(p))
        match name:
            case "reverse_kl":
                values.append(kl_of(q, p))
            case "jsd":
                mixture = [0.3 * a + 0.7 * b for a, b in zip(p, q, strict=True)]
                values.append(0.3 * kl_of(p, mixture) + 0.7 * kl_of(q, mixture))
            case "soft_cross_entropy":
                values.append(-math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True)))
            case "dkd":
                rest = [[x / (1 - row[target]) for c, x in enumerate(row) if c != target] for row in (p, q)]
                pair = [[row[target], 1 - row[target]] for row in (p, q)]
                values.append(0.5 * kl_of(*pair) + 3.0 * kl_of(*rest))
            case "dist":
                start = i // 4 * 4
                groups = [
                    [row[start : start + 4] for row in zip(*side, strict=True)] for side in (p_teacher, p_student)
                ]
                over_rows = [1 - pearson_of(list(a), list(b)) for a, b in zip(*groups, strict=True) if len(a) > 1]
                values.append(2.0 * (1 - pearson_of(p, q)) + 0.5 * (sum(over_rows) / len(p)))
    return values


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reverse_kl", {}),
        ("jsd", {"beta": 0.3}),
        ("soft_cross_entropy", {}),
        ("dkd", {"alpha": 0.5, "beta": 3.0}),
        ("dist", {"inter": 2.0, "intra": 0.5, "group_size": 4}),
    ],
)
def test_soft_losses_equal_their_definitions(name, settings, temperature):
    labels = [0, 4, -1, 2, -1, 1, 3, 0, 2]  # with groups of four a last one of a single row
    student, teacher = random_logits(9, 5, 0), random_logits(9, 5, 1)
    stage = StageSettings.model_validate({"losses": {"kd": {"type": name, "temperature": temperature, **settings}}})
    (loss,) = build_losses(stage.losses, TextClassification("abcde"), BertConfig(), BertConfig(), seed=0).terms.values()
    batch = make_batch(labels)
    values = loss({"logits": student}, {"logits": teacher}, batch)
    sides = [[softmax_by_hand(row, temperature) for row in z.tolist()] for z in (teacher, student)]
    expected = [temperature**2 * value for value in soft_by_hand(name, *sides, labels)]
    assert loss.count(batch) == 9
    assert values.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_decoupled_soft_targets_are_forward_kl_where_the_second_weight_is_what_the_teacher_leaves_to_others():
    student, teacher = random_logits(1, 6, 0), random_logits(1, 6, 1)
    left = 1 - float((teacher / 2).softmax(-1)[0, 3])
    parts = ({"logits": student}, {"logits": teacher}, make_batch([3]))
    assert Dkd(1.0, 2.0, beta=left)(*parts).item() == pytest.approx(ForwardKl()(*parts).item(), rel=1e-4)


def test_jsd_is_symmetric_and_bounded_and_cross_entropy_has_the_gradient_of_forward_kl():
    student, teacher = random_logits(4, 3, 0) * 20, random_logits(4, 3, 1) * 20
    batch = make_batch([0] * 4)
    both = [Jsd(1.0, 1.0)({"logits": a}, {"logits": b}, batch) for a, b in ((student, teacher), (teacher, student))]
    assert torch.allclose(*both, atol=1e-5)
    assert both[0].max() <= math.log(2) + 1e-5
    gradients = []
    for kind in (ForwardKl, SoftCrossEntropy):
        leaf = (student / 20).requires_grad_()
        kind()({"logits": leaf}, {"logits": teacher / 20}, batch).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("kind", [ReverseKl, Jsd, SoftCrossEntropy])
def test_soft_losses_of_several_labels_are_means_over_pairs_of_outcomes(kind):
    student, teacher = random_logits(3, 4, 0), random_logits(3, 4, 1)
    batch = make_batch([0] * 3)
    several = kind(1.0, 2.0, "bernoulli")({"logits": student}, {"logits": teacher}, batch)
    one_by_one = []
    for label in range(4):
        pairs = [torch.stack([z[:, label], torch.zeros(3)], dim=1) for z in (student, teacher)]
        one_by_one.append(kind(1.0, 2.0)({"logits": pairs[0]}, {"logits": pairs[1]}, batch))
    assert torch.allclose(several, torch.stack(one_by_one).mean(0), atol=1e-5)


def test_all_soft_losses_but_cross_entropy_vanish_for_equal_logits_and_teach_the_teacher():
    teacher, batch = random_logits(8, 5, 1), make_batch([0, 1, 2, 3, 4, -1, -1, 0])
    for kind in (ForwardKl, ReverseKl, Jsd, Dkd, Dist):
        assert kind()({"logits": teacher + 2}, {"logits": teacher}, batch).abs().max() < 1e-4
        student = (random_logits(8, 5, 2) * 0.1).requires_grad_()
        optimizer = torch.optim.Adam([student], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            kind()({"logits": student}, {"logits": teacher}, batch).sum().backward()
            optimizer.step()
        assert (student.argmax(-1) == teacher.argmax(-1)).all()


def built(terms, student=None, teacher=None):
    configs = [BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=n) for n in (2, 4)]
    losses = build_losses(
        StageSettings.model_validate({"losses": {"it": terms}}).losses,
        TextClassification("ab"),
        student or configs[0],
        teacher or configs[1],
        seed=0,
    )
    return losses.terms["it"]


def tokens_of(states: torch.Tensor, lengths: list[int]) -> list[np.ndarray]:
    """Rows of a flat tensor, float64."""
    return np.split(states.double().numpy(), np.cumsum(lengths)[:-1])


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


LENGTHS = [3, 1, 4, 2, 5, 2, 3]


def hidden_by_hand(name: str, own: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Each loss on one pair of layers from its definition, in float64."""
    rows = list(zip(tokens_of(own, LENGTHS), tokens_of(other, LENGTHS), strict=True))
    match name:
        case "hidden_kl":
            pairs = [(s, t) for a, b in rows for s, t in zip(a, b, strict=True)]
            return [4 * kl_of(softmax_by_hand(t.tolist(), 2.0), softmax_by_hand(s.tolist(), 2.0)) for s, t in pairs]
        case "embedding_mse":
            return [float(((s - t) ** 2).mean()) for a, b in rows for s, t in zip(a, b, strict=True)]
        case "pkd":
            firsts = [(a[0] / np.linalg.norm(a[0]), b[0] / np.linalg.norm(b[0])) for a, b in rows]
            return [float(((s - t) ** 2).sum()) for s, t in firsts]
        case "pooled_cosine":
            means = [(a.mean(0), b.mean(0)) for a, b in rows]
            return [1 - float(s @ t / np.linalg.norm(s) / np.linalg.norm(t)) for s, t in means]
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["hidden_kl", "embedding_mse", "pkd", "pooled_cosine"])
def test_losses_on_states_equal_their_definitions(name):
    own, other = (torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    layers = {} if name == "embedding_mse" else {"layers": [[1, 3]]}
    loss = built({"type": name, **layers, **({"temperature": 2.0} if name == "hidden_kl" else {})})
    place = (0, 0) if name == "embedding_mse" else (1, 3)
    batch = make_batch([0, -1, 1, 0, -1, 1, 1], LENGTHS)
    values = loss({f"hidden_states[{place[0]}]": own}, {f"hidden_states[{place[1]}]": other}, batch)
    assert values.tolist() == pytest.approx(hidden_by_hand(name, own, other), rel=1e-4, abs=1e-6)
    assert loss.count(batch) == len(values)
    same = loss({f"hidden_states[{place[0]}]": own}, {f"hidden_states[{place[1]}]": own}, batch)
    assert same.abs().max() < 1e-5
    narrow = built({"type": name, **layers}, student=BertConfig(hidden_size=4, num_attention_heads=2))
    assert [p.shape for p in narrow.projections.parameters()] == [(8, 4), (8,)]


def relations_by_hand(name: str, own: torch.Tensor, other: torch.Tensor, group: int) -> list[float]:
    values = []
    sides = [[row.mean(0) for row in tokens_of(states, LENGTHS)] for states in (own, other)]
    for start in range(0, len(LENGTHS), group):
        members = range(start, min(start + group, len(LENGTHS)))
        if len(members) < (2 if name == "rkd_distance" else 3):
            continue
        if name == "rkd_distance":
            far = [{(i, j): np.linalg.norm(r[i] - r[j]) for i in members for j in members if i != j} for r in sides]
            units = [sum(found.values()) / len(found) for found in far]
            for i in members:
                gaps = [huber(far[0][i, j] / units[0] - far[1][i, j] / units[1]) for j in members if j != i]
                values.append(sum(gaps) / len(gaps))
            continue
        for j in members:
            gaps = []
            for i in members:
                for k in members:
                    if len({i, j, k}) == 3:
                        pair = [((r[i] - r[j]), (r[k] - r[j])) for r in sides]
                        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pair]
                        gaps.append(huber(float(cosines[0] - cosines[1])))
            values.append(sum(gaps) / len(gaps))
    return values


@pytest.mark.parametrize("group", [3, 4, 7])
@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_relations_equal_their_definitions_at_any_width(name, group):
    draws = [torch.Generator().manual_seed(i) for i in (0, 1)]
    own, other = (torch.randn(sum(LENGTHS), w, generator=g) * 2 for w, g in zip((5, 8), draws, strict=True))
    student = BertConfig(hidden_size=5, num_attention_heads=1, num_hidden_layers=2)
    loss = built({"type": name, "group_size": group}, student=student)
    batch = make_batch([-1] * 7, LENGTHS)
    values = loss({"hidden_states[2]": own}, {"hidden_states[4]": other}, batch)
    assert values.tolist() == pytest.approx(relations_by_hand(name, own, other, group), rel=1e-4, abs=1e-6)
    assert (loss.count(batch), loss.group_size) == (len(values), group)
    turned = loss(
        {"hidden_states[2]": other @ torch.linalg.qr(torch.randn(8, 8))[0] * 3}, {"hidden_states[4]": other}, batch
    )
    assert turned.abs().max() < 1e-4  # relations know neither direction nor unit
    assert not list(loss.parameters())


def test_gradients_of_relations_are_finite_where_rows_coincide():
    states = torch.ones(4, 3).requires_grad_()
    for name in ("rkd_distance", "rkd_angle"):
        loss = built({"type": name, "group_size": 4})
        batch = make_batch([0] * 4, [1] * 4)
        loss({"hidden_states[2]": states}, {"hidden_states[4]": torch.randn(4, 8)}, batch).sum().backward()
        assert torch.isfinite(states.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardised_logits_tell_the_order_and_not_the_certainty(temperature):
    student, teacher = random_logits(4, 5, 0), random_logits(4, 5, 1)
    loss = ForwardKl(1.0, temperature, standardize=True)
    values = loss({"logits": student}, {"logits": teacher}, make_batch([0] * 4))
    sides = []
    for z in (teacher, student):
        rows = z.double().numpy()
        sides.append(torch.tensor((rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)))
    assert values.tolist() == pytest.approx(kl_by_hand(*sides, temperature), rel=1e-4)
    scaled = loss({"logits": 3 * teacher + 7}, {"logits": teacher}, make_batch([0] * 4))
    assert scaled.abs().max() < 1e-4


def test_rows_count_by_the_power_of_the_teachers_confidence():
    student, teacher, batch = random_logits(4, 3, 0), random_logits(4, 3, 1), make_batch([0] * 4)
    plain = ForwardKl(1.0, 2.0)({"logits": student}, {"logits": teacher}, batch)
    weighed = ForwardKl(1.0, 2.0, confidence=2.0)({"logits": student}, {"logits": teacher}, batch)
    surest = [max(softmax_by_hand(row, 1.0)) for row in teacher.tolist()]
    assert weighed.tolist() == pytest.approx([v * p**2 for v, p in zip(plain.tolist(), surest, strict=True)], rel=1e-4)
    coins = ForwardKl(1.0, 2.0, "bernoulli", confidence=1.0)({"logits": student}, {"logits": teacher}, batch)
    expected = []
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = [(torch.tensor([[t, 0.0]]), torch.tensor([[s, 0.0]])) for s, t in zip(own, other, strict=True)]
        sure = [1 / (1 + math.exp(-abs(t))) for t in other]
        expected.append(sum(p * kl_by_hand(*pair, 2.0)[0] for p, pair in zip(sure, pairs, strict=True)) / 3)
    assert coins.tolist() == pytest.approx(expected, rel=1e-4)
