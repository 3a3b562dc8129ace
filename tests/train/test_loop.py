"""The training loop: the same gradient however a batch is cut, exact resume, the best weights at the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kit.losses import PairDistance
from kit.ranks import run_ranks
from kit.stages import batch_gradients
from kit.toy import Toy, make_toy, relative_difference, weights, without_key_biases
from scipy.linalg import hadamard

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.losses import SECTIONS
from raydistill.errors import ConfigError, Interrupted, RaydistillError
from raydistill.losses import ForwardKl, Losses, TaskLoss
from raydistill.models.capture import capture
from raydistill.models.signals import LOGITS
from raydistill.tasks import TextClassification
from raydistill.teacher.signals import OnlineSignals
from raydistill.train import checkpoint, loop
from raydistill.train.checkpoint import TrainProgress
from raydistill.train.dropout import RowDropout
from raydistill.train.loop import StageRun, Validation, train
from raydistill.train.preflight import gradient_norms
from raydistill.train.schedule import Schedule

FP32_GRADIENT = 5e-6
"""Bound of design section 3: largest difference of a gradient, as a share of the tensor's largest value."""


BF16_GRADIENT = 2e-2


def all_terms(toy: Toy) -> Losses:
    """Rows, labelled rows, pairs of rows."""
    return Losses(
        {
            "kd": ForwardKl(weight=1.0),
            "task": TaskLoss(TextClassification(toy.labels), weight=0.5),
            "pairs": PairDistance(weight=0.2),
        }
    )


@pytest.mark.parametrize(("num_labeled", "dropout"), [(0, 0.0), (2, 0.0), (60, 0.0), (60, 0.3)])
def test_micro_batches_do_not_change_the_gradient(toy, num_labeled, dropout):
    """Of a student in float64: what is left is the rounding of losses; kernels of float32 differ by up to 7e-6."""
    rows = toy.rows()
    unlabeled, labeled = np.flatnonzero(~rows.targets.labeled), np.flatnonzero(rows.targets.labeled)
    row_ids = np.concatenate([unlabeled[:64], labeled[:num_labeled]])
    cut = {}
    for tokens in (100_000, 160):
        changes = {"row_ids": row_ids, "train": {"tokens_per_micro_batch": tokens}}
        setup = toy.setup("micro", all_terms(toy), toy.student(dropout=dropout).double(), **changes)
        cut[tokens] = (len(StageRun(setup).collate(0)), without_key_biases(batch_gradients(setup)))
    assert cut[100_000][0] == 1
    assert cut[160][0] >= 3
    assert max(relative_difference(cut[100_000][1], cut[160][1]).values()) < FP32_GRADIENT


@pytest.mark.parametrize(
    "kind", [name for name, kind in SECTIONS.items() if kind.takes("categorical", has_units=False)]
)
def test_micro_batches_change_the_gradient_of_no_loss(toy, kind):
    """Nor does padding, which differs between them. A shift that means nothing has no gradient but rounding."""
    cut = []
    for tokens in (100_000, 160):
        student = toy.student(start="random")
        losses = toy.losses(student, it={"type": kind})
        changes = {"row_ids": np.arange(64), "train": {"global_batch_size": 64, "tokens_per_micro_batch": tokens}}
        setup = toy.setup("each", losses, student, **changes)
        cut.append((len(StageRun(setup).collate(0)), without_key_biases(batch_gradients(setup))))
    assert cut[0][0] == 1 < cut[1][0]
    least = 1e-5 * max(float(gradient.abs().max()) for gradient in cut[0][1].values())
    known = [{name: g for name, g in found.items() if cut[0][1][name].abs().max() > least} for _, found in cut]
    assert len(known[0]) > len(cut[0][1]) / 2
    assert max(relative_difference(*known).values()) < 10 * FP32_GRADIENT


def test_micro_batches_hardly_change_the_gradient_in_bfloat16(toy):
    device = Device("cpu", "bfloat16")
    cut = [
        without_key_biases(batch_gradients(toy.setup("bf16", device=device, train={"tokens_per_micro_batch": tokens})))
        for tokens in (100_000, 160)
    ]
    assert 0 < max(relative_difference(*cut).values()) < BF16_GRADIENT


@pytest.mark.parametrize("kind", ["hidden_mse", "minilm_v2", "rkd_angle", "crd", "graph_attention", "cosine_pairs"])
def test_a_model_computes_in_bfloat16_and_its_losses_in_float32(toy, kind):
    """Loop and pre-flight: the loss of what autocast made of the model, by products of matrices that are exact."""
    device, student = Device("cpu", "bfloat16"), toy.student(start="random", hidden_size=16, num_heads=2).eval()
    losses = toy.losses(student, it={"type": kind})
    setup = toy.setup("exact", losses, student, device=device)
    batch = setup.rows.batch(np.flatnonzero(setup.rows.targets.labeled)[:16])
    ids, (loss,) = losses.student_needs, losses.terms.values()
    teacher = setup.signals.read(batch)
    with device.autocast():
        given = capture(student, batch.inputs, ids)
    exact = capture(student, batch.inputs, ids)
    assert not any(torch.equal(exact[name], given[name].float()) for name in ids)
    expected = loss(*({name: z.float() for name, z in side.items()} for side in (given, teacher)), batch).sum()
    _, sums = StageRun(setup)._forward(batch, [float(loss.count(batch))])
    torch.testing.assert_close(sums[0], expected.detach(), rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(expected / loss.count(batch), [*student.parameters()], allow_unused=True)
    norm = float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())
    assert gradient_norms(student, losses, setup.signals, batch, device) == {"it": pytest.approx(norm, rel=1e-5)}


def test_losses_do_not_depend_on_the_padding_length(toy):
    student = toy.student(hidden_size=16, num_heads=2)
    terms = {"kd": {"type": "forward_kl"}, "task": {"type": "task"}, "h": {"type": "hidden_mse"}}
    losses = toy.losses(student, **terms, c={"type": "hidden_cosine"})
    setup, rows = toy.setup("padding", losses, student), toy.rows()
    ids = np.flatnonzero(rows.targets.labeled)[:9]
    short = rows.batch(ids)
    long = replace(short, inputs={name: torch.nn.functional.pad(t, (0, 13)) for name, t in short.inputs.items()})
    for loss in losses.terms.values():
        a, b = (
            loss(capture(student, batch.inputs, losses.student_needs), setup.signals.read(batch), batch)
            for batch in (short, long)
        )
        assert a.shape == b.shape == (loss.count(short),)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_labels_the_task_term_is_zero(toy):
    row_ids = np.flatnonzero(~toy.rows().targets.labeled)[:64]
    both = batch_gradients(toy.setup("zero", row_ids=row_ids))
    alone = batch_gradients(toy.setup("zero", toy.losses(toy.student(), kd={"type": "forward_kl"}), row_ids=row_ids))
    assert all(torch.equal(both[name], alone[name]) for name in both)
    told = next(train(toy.setup("zero", row_ids=row_ids))).metrics
    assert told["train/loss/task"] == 0
    assert told["train/loss"] == told["train/loss/kd"] > 0


def test_the_share_of_a_rank_holds_whole_groups(toy):
    setup = toy.setup("shares", all_terms(toy), row_ids=np.arange(6))
    stage, shares = StageRun(setup), []
    setup.group.size = 2
    for setup.group.rank in (0, 1):
        shares.append(np.concatenate(stage.parts(stage.plan, 0)))
    assert [len(share) for share in shares] == [2, 4]
    assert sorted(np.concatenate(shares)) == list(range(6))


def rank_gradients(folder: Any) -> dict[str, Any]:
    """Run on each rank: gradients of a full batch and of a short one that leaves a rank without rows."""
    toy = make_toy(folder)
    student = toy.student(hidden_size=16, num_heads=2)
    result = {}
    for name, row_ids in (("full", np.arange(64)), ("dropout", np.arange(64)), ("short", np.arange(1))):
        losses = toy.losses(
            student,
            kd={"type": "forward_kl"},
            task={"type": "task", "weight": 0.5},
            hidden={"type": "hidden_mse", "layers": [[1, 2], [2, 4]], "weight": 0.2},
        )
        losses["pairs"] = PairDistance(weight=0.1)
        model = toy.student(hidden_size=16, num_heads=2, dropout=0.3 if name == "dropout" else 0.0)
        setup = toy.setup(f"ranks-{name}", losses, model, row_ids=row_ids)
        result[name] = batch_gradients(setup)
    reports = [r.metrics for r in train(toy.setup("ranks-train", model=student, train={"checkpoint_steps": 1000}))]
    ends = [(r.num_steps, r.metrics["train/learning_rate"]) for r in train(open_ended(toy, "ranks-open"))]
    return {**result, "weights": weights(student), "reports": reports, "ends": ends, "rank": Group().rank}


def test_two_workers_equal_one(toy, tmp_path):
    """Gradients (projections included), whole training, an open end; all ranks the same; also one without rows."""
    make_toy(tmp_path / "two")
    one = rank_gradients(tmp_path / "one")
    first, second = run_ranks(rank_gradients, 2, tmp_path / "ranks", tmp_path / "two")
    assert [first["rank"], second["rank"]] == [0, 1]
    for name in ("full", "dropout", "short"):
        assert any("projections" in key for key in one[name])
        difference = relative_difference(without_key_biases(one[name]), without_key_biases(first[name]))
        assert max(difference.values()) < FP32_GRADIENT
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    for a, b in zip(one["reports"], first["reports"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    assert one["ends"] == first["ends"] == second["ends"]
    assert one["ends"][-1][0] == 36


def with_dropout(toy: Toy) -> Any:
    return toy.student(dropout=0.2)


def test_resume_after_a_kill_is_bit_identical(toy, monkeypatch):
    """Killed two steps after a checkpoint, inside an epoch, with dropout on: the same weights and the same history."""
    monkeypatch.setattr(checkpoint, "PIECE", 3)
    whole = toy.setup("resume-whole", model=with_dropout(toy))
    told = [{"step": r.step, "validated": r.validated, "kept": r.kept, **r.metrics} for r in train(whole)]
    broken = toy.setup("resume-broken", model=with_dropout(toy))
    stage = train(broken)
    reached = 0
    while reached < 8:
        reached = next(stage).step
    stage.close()
    resumed = toy.setup("resume-broken", model=with_dropout(toy))
    first = next(iter(reports := train(resumed)))
    assert 6 < first.step <= 8
    list(reports)
    assert all(torch.equal(weights(whole.model)[n], weights(resumed.model)[n]) for n in weights(whole.model))
    assert whole.checkpoints.history() == resumed.checkpoints.history() == told


OPEN = {
    "schedule": Schedule(40, 2, 8),
    "optimization": {"warmup_ratio": 0.25, "learning_rate": 1e-3},
}


def rising(last: float, noise: float) -> Iterator[Validation]:
    """Validations that gain 0.1 each up to the score ``last``; ``noise``: the standard error of any difference."""
    index, value = 0, 0.0
    while True:
        index, value = index + 1, min(last, value + 0.1)
        yield Validation({"accuracy": value}, value, value + noise / math.sqrt(2) * PATTERNS[1 + index % 7])


def open_ended(toy: Any, name: str, skip: int = 0, last: float = 0.6, noise: float = 0.01) -> Any:
    """A stage whose end is open; ``skip``: validations that a killed one has had."""
    validations = rising(last, noise)
    for _ in range(skip):
        next(validations)
    return toy.setup(name, model=with_dropout(toy), validate=lambda: next(validations), **OPEN)


@pytest.mark.parametrize(
    ("last", "noise", "num_steps"),
    [
        (0.1, 0.01, 8),  # the first validation is the best: as few steps as may be
        (0.6, 0.01, 36),  # gains to step 12; a second half without one begins after it, at step 24
        (0.6, 1.0, 8),  # no gain is clear
        (9.0, 0.01, 40),  # the limit
    ],
)
def test_an_open_stage_ends_when_validation_has_ceased_to_gain(toy, last, noise, num_steps):
    setup = open_ended(toy, f"open-{last}-{noise}", last=last, noise=noise)
    reports = list(train(setup))
    assert reports[-1].step == reports[-1].num_steps == num_steps
    assert reports[-1].finished
    assert all(report.num_steps >= max(8, report.step) for report in reports)
    rates = [report.metrics["train/learning_rate"] for report in reports]
    assert rates[0] == pytest.approx(1e-3 * min(1.0, reports[0].step / 2))
    steps = [report.step for report in reports]
    usual = Schedule(8, 2)  # what it is up to two thirds of its least length, and altogether where this is enough
    first = [step for step in steps if step <= (8 if num_steps == 8 else 4)]
    expected = [usual.learning_rate(step - 1, TrainProgress(), setup.optimization) for step in first]
    assert rates[: len(first)] == pytest.approx(expected)
    if num_steps > 8:
        begin = round(2 / 3 * num_steps)
        assert {rate for step, rate in zip(steps, rates, strict=True) if 6 < step <= begin} == {1e-3}
        decay = [rate for step, rate in zip(steps, rates, strict=True) if step > begin + 1]
        assert decay == sorted(decay, reverse=True)
        assert decay[-1] == pytest.approx(1e-3 / round(num_steps / 3), rel=0.1)


@pytest.mark.parametrize("killed_at", [4, 7, 11, 25, 31])
def test_an_open_stage_that_is_killed_ends_where_it_would_have(toy, killed_at):
    """Before and after it is extended, before its end is found, just after, and while the rate falls."""
    whole = open_ended(toy, f"open-whole-{killed_at}")
    told = [(r.step, r.num_steps, r.metrics) for r in train(whole)]
    stage = train(open_ended(toy, f"open-killed-{killed_at}"))
    while next(stage).step < killed_at:
        pass
    stage.close()
    saved = (killed_at if killed_at % 3 == 0 else killed_at - killed_at % 3) // 3 * 3
    resumed = open_ended(toy, f"open-killed-{killed_at}", skip=saved // 2)
    again = [(r.step, r.num_steps, r.metrics) for r in train(resumed)]
    assert again == told[-len(again) :]
    assert len(again) < len(told)
    assert all(torch.equal(weights(whole.model)[n], weights(resumed.model)[n]) for n in weights(whole.model))
    assert whole.checkpoints.history() == resumed.checkpoints.history()


def test_a_model_that_has_learned_nothing_goes_on(toy):
    steps = itertools.count(2, 2)

    def blind() -> Validation:
        step = next(steps)  # an untrained head answers this and that, which is nothing learned
        return Validation({"accuracy": 0.5}, 0.5, np.zeros(4), has_learned=lambda: step == 2 or step >= 22)

    assert [r.step for r in train(toy.setup("open-blind", validate=blind, **OPEN))][-1] == 33  # it learned at step 22


def steps_of(method: str, patch: pytest.MonkeyPatch) -> list[int]:
    """The steps that a stage does this for, from here on."""
    steps: list[int] = []
    original = getattr(StageRun, method)

    def counting(self: StageRun, step: int, *arguments: Any) -> Any:
        steps.append(step)
        return original(self, step, *arguments)

    patch.setattr(StageRun, method, counting)
    return steps


def test_stopping_writes_a_checkpoint_at_that_step(toy):
    calls = iter([False] * 4 + [True] * 100)
    setup = toy.setup("stop", should_stop=lambda: next(calls))
    with pytest.raises(Interrupted, match="after step 4 of"):
        list(train(setup))
    again = toy.setup("stop")
    with pytest.MonkeyPatch.context() as patch:
        taken, collated = (steps_of(name, patch) for name in ("take_step", "collate"))
        list(train(again))
    assert taken == collated == list(range(4, again.schedule.num_steps))


def test_a_finished_stage_trains_no_more_and_has_its_best_weights(toy):
    setup = toy.setup("finished")
    list(train(setup))
    again = toy.setup("finished")
    assert list(train(again)) == []
    assert all(torch.equal(weights(setup.model)[n], weights(again.model)[n]) for n in weights(again.model))


def scores(values: list[float], noise: float | None = None) -> Iterator[Validation]:
    """Validations of these scores; ``noise``: the standard error of a difference of two."""
    for index, value in enumerate(values):
        samples = np.zeros(0) if noise is None else value + noise / math.sqrt(2) * PATTERNS[index + 1]
        yield Validation({"accuracy": value}, value, samples)


PATTERNS = hadamard(8)
"""But for the first row of mean 0, deviation 1 and without correlation."""


@pytest.mark.parametrize(
    ("values", "noise", "kept"),
    [
        ([0.5, 0.9, 0.7, 0.8], None, 1),
        ([0.5, 0.9, 0.7, 0.88], 0.01, 1),  # worse by more than noise
        ([0.5, 0.9, 0.7, 0.88], 0.03, 3),  # no worse than noise: what was trained longer
        ([checkpoint.WORST] * 4, None, 3),  # of none it is known what it is worth
        ([checkpoint.WORST, 0.2, checkpoint.WORST, 0.1], None, 1),
        ([0.9, 0.88, 0.86, 0.84], 0.03, 1),  # it is held against the best, never against the one kept
    ],
)
def test_the_best_weights_are_kept_or_later_ones_that_are_no_worse(toy, values, noise, kept):
    validations = scores(values, noise)
    seen: list[dict[str, torch.Tensor]] = []
    model = toy.student()

    def validate() -> Validation:
        seen.append(weights(model))
        return next(validations)

    name = f"best-{values[0]}-{noise}-{kept}"
    setup = toy.setup(name, model=model, schedule=Schedule(8, 2), validate=validate)
    told = [report.kept for report in train(setup) if report.validated]
    assert len(seen) == 4
    assert max(i for i, was_kept in enumerate(told) if was_kept) == kept
    assert all(torch.equal(weights(model)[n], seen[kept][n]) for n in weights(model))
    other = 3 if kept != 3 else 1
    assert not all(torch.equal(seen[kept][n], seen[other][n]) for n in weights(model))


def test_early_stopping_counts_validations_without_gain(toy):
    validations = scores([0.5, 0.6, 0.6, 0.4, 0.9])
    setup = toy.setup(
        "early", schedule=Schedule(10, 2), validate=lambda: next(validations), train={"early_stopping": 2}
    )
    reports = list(train(setup))
    assert [r.step for r in reports if r.validated] == [2, 4, 6, 8]


def test_frozen_parameters_stay_and_the_rest_moves(toy):
    setup = toy.setup("frozen", optimization={"freeze": ["*embeddings*"]})
    before = weights(setup.model)
    list(train(setup))
    changed = {name for name, tensor in weights(setup.model).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any("embeddings" in name for name in changed)


def test_projections_of_losses_are_trained_with_the_model(toy):
    student = toy.student(hidden_size=16, num_heads=2)
    losses = toy.losses(student, hidden={"type": "hidden_mse", "layers": [[1, 2]]})
    before = weights(losses)
    assert before
    list(train(toy.setup("projections", losses, student, until=1)))
    assert not any(torch.equal(tensor, before[name]) for name, tensor in weights(losses).items())


def test_all_is_on_the_device_of_the_stage(toy, monkeypatch):
    """The default device is one that cannot compute, so that what is made on none says so."""
    moved: list[tuple[Any, Any]] = []
    drawn: list[torch.device] = []
    setup = toy.setup("device", model=with_dropout(toy))
    with torch.device("meta"):
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, "to", lambda module, device: moved.append((module, device)))
            stage = StageRun(setup)
        monkeypatch.setattr(loop, "RowDropout", lambda *given: drawn.append(given[-1]) or RowDropout(*given))
        batches = stage.collate(0)
        stage.take_step(0, batches, setup.losses.counts(batches), TrainProgress())
    assert set(drawn) == {torch.device("cpu")}
    assert moved == [(setup.model, torch.device("cpu")), (setup.losses, torch.device("cpu"))]
    assert [value.device.type for value in stage._sums] == ["cpu", "cpu"]


@pytest.mark.parametrize(("pattern", "words"), [("*nothing*", "matches no parameter"), ("*", "is left to train")])
def test_a_freeze_pattern_that_cannot_be_meant_is_refused(toy, pattern, words):
    for name, setting in (("student.distill", "stages.distill.freeze"), ("teacher", "teacher.finetune.freeze")):
        with pytest.raises(ConfigError, match=f"^{setting}: .*{words}"):
            list(train(toy.setup(name, optimization={"freeze": [pattern]})))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(toy):
    setup = toy.setup("nan", train={"max_grad_norm": None})
    reports = train(setup)
    next(reports)
    saved = setup.checkpoints.history()
    with torch.no_grad():
        next(iter(setup.model.parameters())).fill_(math.nan)
    with pytest.raises(RaydistillError, match="not finite"):
        list(reports)
    assert setup.checkpoints.history() == saved


@pytest.mark.parametrize("broken", ["gradient", "pairs"])
def test_a_loss_or_a_gradient_alone_that_is_not_finite_is_named(toy, broken):
    setup = toy.setup(f"broken-{broken}", all_terms(toy))
    if broken == "gradient":
        next(setup.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    else:
        setup.losses["pairs"].register_forward_hook(lambda loss, given, values: values + math.inf)
    with pytest.raises(RaydistillError, match=f"the loss {broken} is not finite at step 1"):
        list(train(setup))


def test_batch_size_must_fit_the_groups(toy):
    with pytest.raises(ConfigError, match="not a multiple of 2"):
        list(train(toy.setup("groups", all_terms(toy), train={"global_batch_size": 15})))


def test_reports_come_every_few_steps_and_at_validations(toy):
    setup = toy.setup(
        "rhythm", schedule=Schedule(62, 25), validate=lambda: Validation({"accuracy": 1.0, "macro_f1": 0.5}, 1.0)
    )
    reports = list(train(setup))
    validated = [25, 50, 62]  # and the first, and every third step: a twentieth of the stage
    assert [r.step for r in reports] == sorted({1, *range(3, 63, 3), *validated})
    assert [r.step for r in reports if r.validated] == validated
    assert [r.step for r in reports if "validation/macro_f1" in r.metrics] == validated
    assert [r.step for r in reports if r.finished] == [62]
    assert {r.num_steps for r in reports} == {62}
    assert {r.validated for r in reports} == {True, False}
    assert not setup.model.training
    history = setup.checkpoints.history()
    assert history == [{"step": r.step, "validated": r.validated, "kept": r.kept, **r.metrics} for r in reports]


def test_a_report_tells_the_means_since_the_last_one(toy):
    """The weights stay as they are, so that each step's terms can be computed apart."""
    optimization = {"learning_rate": 1e-30, "weight_decay": 0.0, "warmup_ratio": 0.5}
    setup = toy.setup("means", schedule=Schedule(40, 40), optimization=optimization)
    reports = {report.step: report.metrics for report in train(setup)}
    assert list(reports) == [1, *range(2, 41, 2)]
    stage, sums, counts, norms = StageRun(setup), [], [], []
    for step in (2, 3):
        batches = stage.collate(step)
        counts.append(setup.losses.counts(batches))
        stage.accumulate(step, batches, counts[-1])
        told = [stage._forward(batch, counts[-1])[1] for batch in batches]
        sums.append([float(sum(values)) for values in zip(*told, strict=True)])
        norms.append(float(torch.cat([p.grad.flatten() for p in stage.parameters if p.grad is not None]).norm()))
        stage.optimizer.zero_grad()
    kd, task = (sum(s[i] for s in sums) / sum(c[i] for c in counts) for i in (0, 1))
    assert reports[4]["train/loss/kd"] == pytest.approx(kd, rel=1e-4)
    assert reports[4]["train/loss/task"] == pytest.approx(task, rel=1e-4)
    assert reports[4]["train/loss"] == pytest.approx(kd + 0.5 * task, rel=1e-4)
    assert reports[4]["train/grad_norm"] == pytest.approx(norms[1], rel=1e-3)
    assert reports[4]["train/learning_rate"] == pytest.approx(1e-30 * 4 / 20)


def test_a_stage_that_is_left_on_the_way_goes_on_there(toy):
    whole = toy.setup("whole")
    list(train(whole))
    first = toy.setup("parts", until=7)
    assert [report.finished for report in train(first)] == [False] * 7
    assert first.checkpoints.history()[-1]["step"] == 7
    idle = LateSignals(toy.teacher(), frozenset({"logits"}), Device())
    assert list(train(toy.setup("parts", until=7, signals=idle))) == []
    assert not hasattr(idle, "foreseen")
    rest = toy.setup("parts", until=100)
    assert [report.step for report in train(rest)] == list(range(8, 13))
    assert all(torch.equal(weights(whole.model)[n], weights(rest.model)[n]) for n in weights(whole.model))


@pytest.mark.parametrize("at_validation", [False, True])
def test_checkpoints_are_written_when_asked_for(toy, at_validation):
    """Every ``checkpoint_steps``, at once when a node is about to go, and before a validation is told."""
    asked = iter([False, False, True] + [False] * 100)
    fields = {"should_save": lambda: next(asked), "save_at_validation": at_validation, "schedule": Schedule(11, 7)}
    setup = toy.setup(f"saves-{at_validation}", train={"checkpoint_steps": 4}, **fields)
    saved = []
    for report in train(setup):
        history = setup.checkpoints.history()
        saved.append((report.step, history[-1]["step"] if history else 0))
    seven, eleven = (7, 11) if at_validation else (4, 8)
    last = [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4), (6, 4), (7, seven), (8, seven), (9, 8), (10, 8), (11, eleven)]
    assert saved == last
    assert setup.checkpoints.history()[-1]["step"] == 11


class LateSignals(OnlineSignals):
    """Signals that take two looks to arrive; it keeps what was foreseen, what was waited for, and what was taken."""

    def foresee(self, steps):
        self.foreseen, self.waited, self.looks = [[part.tolist() for part in step] for step in steps], [], 0
        self.taken = []

    def wait(self, parts):
        self.looks += 1
        if self.looks % 3 == 0:
            self.waited.append([part.tolist() for part in parts])
        return self.looks % 3 == 0

    def read(self, batch):
        self.taken.append(batch.row_ids.tolist())
        return super().read(batch)


def test_the_loop_waits_for_late_signals_and_tells_ahead_what_it_needs(toy):
    plain = toy.setup("in-time")
    list(train(plain))
    signals = LateSignals(toy.teacher(), frozenset({LOGITS}), Device())
    setup = toy.setup("late", signals=signals)
    list(train(setup))
    assert signals.looks == 3 * setup.schedule.num_steps
    assert signals.waited == signals.foreseen
    assert signals.taken == [part for step in signals.foreseen for part in step]
    assert sorted(row for step in signals.waited[:6] for part in step for row in part) == list(range(192))
    assert all(torch.equal(weights(plain.model)[n], weights(setup.model)[n]) for n in weights(plain.model))
    list(train(toy.setup("late-resumed", until=5)))
    list(train(toy.setup("late-resumed", signals=signals)))
    assert signals.waited == signals.foreseen  # from the sixth step on
    assert len(signals.waited) == 7


def test_what_a_model_draws_itself_goes_by_seed_and_step(toy):
    drawn = []
    for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1)):
        setup = toy.setup("drawn", seed=seed)
        stage = StageRun(setup)
        batches = stage.collate(step)
        stage.accumulate(step, batches, setup.losses.counts(batches))
        drawn.append(torch.initial_seed())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_gradient_clipping_bounds_the_norm_of_the_step(toy):
    setup = toy.setup("clip", train={"max_grad_norm": 1e-3})
    stage = StageRun(setup)
    batches = stage.collate(0)
    gradients: list[float] = []
    setup_step = stage.optimizer.step
    stage.optimizer.step = lambda: (  # type: ignore[method-assign]
        gradients.append(float(torch.cat([p.grad.flatten() for p in stage.parameters if p.grad is not None]).norm())),
        setup_step(),
    )
    stage.take_step(0, batches, [float(n) for n in setup.losses.counts(batches)], TrainProgress())
    assert gradients == [pytest.approx(1e-3, rel=1e-3)]
    assert all(p.grad is None for p in stage.parameters)  # AdamW would decay a parameter with a gradient of zeros


def test_gradients_within_the_limit_are_not_scaled(toy, monkeypatch):
    stage, scaled = StageRun(toy.setup("within", train={"max_grad_norm": 1.0})), []
    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", lambda _, limit, norm: scaled.append((limit, norm)))
    weight = stage.parameters[0]
    for norm in (0.5, 1.0, 1.5):
        weight.grad = torch.zeros_like(weight)
        weight.grad[0, 0] = -norm
        assert stage._clip() == norm
    assert scaled == [(1.0, 1.5)]


def test_a_scheduled_weight_goes_on_where_it_was(toy):
    terms = {
        "kd": {"type": "forward_kl", "temperature": {"start": 4, "end": 1}},
        "task": {"type": "task", "weight": {"type": "cosine", "start": 1, "end": 0}},
    }
    whole = toy.setup("scheduled", losses=toy.losses(toy.student(), **terms))
    reports = [report for report in train(whole) if not report.validated or report.finished]
    last = whole.schedule.num_steps - 1
    for report in reports:
        share = (report.step - 1) / last
        assert report.metrics["train/temperature/kd"] == pytest.approx(4 - 3 * share)
        assert report.metrics["train/weight/task"] == pytest.approx((1 + math.cos(math.pi * share)) / 2)
        assert "train/weight/kd" not in report.metrics
    for until in (5, None):
        part = toy.setup("scheduled-parts", losses=toy.losses(toy.student(), **terms), until=until)
        list(train(part))
    assert all(torch.equal(weights(whole.model)[n], weights(part.model)[n]) for n in weights(whole.model))
    plain = toy.setup("unscheduled")
    list(train(plain))
    assert any(not torch.equal(weights(whole.model)[n], weights(plain.model)[n]) for n in weights(whole.model))
