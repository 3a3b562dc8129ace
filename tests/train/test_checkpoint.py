"""What is checkpointed comes back exactly, older ones go, and what is damaged or of another owner is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from raydistill.errors import ArtifactError, StaleOwner
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.train import checkpoint
from raydistill.train.checkpoint import Checkpoints, TrainProgress

PARTS = ("runs", "r", "student")
PROGRESS = TrainProgress(5, 0.75, [0.5, 1.0], 2, False, [{"step": 5, "validated": True, "train/loss": 0.5}])


class Tied(nn.Module):
    """Three names for one tensor, and a tensor that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = self.d = nn.Parameter(torch.randn(3, 2))
        self.c = nn.Parameter(torch.randn(2, 4).t())
        self.register_buffer("seen", torch.randint(9, (2,)))


def made(seed: int) -> tuple[Tied, nn.Linear, torch.optim.AdamW]:
    """Model, losses and an optimizer that has taken a step."""
    torch.manual_seed(seed)
    model, losses = Tied(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*model.parameters(), *losses.parameters()], lr=0.1 * (seed + 1))
    (model.a.sum() * model.c.square().sum() + losses(torch.ones(1, 2)).square().sum()).backward()
    optimizer.step()
    return model, losses, optimizer


def state(model: nn.Module, losses: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    return [*model.state_dict().values(), *losses.state_dict().values(), *moments]


def test_the_last_checkpoint_restores_everything(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage(str(tmp_path)), PARTS)
    saved, other = made(0), made(1)
    untouched = [tensor.clone() for tensor in state(*other)]
    assert checkpoints.load_last(*other) is None
    assert checkpoints.history() == []
    assert all(map(torch.equal, state(*other), untouched))
    checkpoints.save_last(PROGRESS, *saved)
    again = Checkpoints(Storage(str(tmp_path)), PARTS)
    assert again.load_last(*other) == PROGRESS
    assert all(map(torch.equal, state(*other), state(*saved)))
    assert other[2].param_groups[0]["lr"] == saved[2].param_groups[0]["lr"]
    assert again.history() == PROGRESS.history


def test_one_checkpoint_of_each_kind_stays(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    checkpoints = Checkpoints(storage, PARTS)
    first, second, third = made(0), made(1), made(2)
    checkpoints.keep_best(1, 0.5, third[0])
    for step, model in ((2, first), (12, second)):
        checkpoints.keep_best(step + 1, 0.25 * step, model[0])
        checkpoints.save_last(TrainProgress(step), *model)
    with torch.no_grad():
        second[0].a.zero_()  # trained on: what counts is the weights at the validation
    checkpoints.save_last(TrainProgress(12), *second)
    assert sorted(storage.list(*PARTS)) == ["best-00000013", "best.json", "last-00000012", "last.json"]
    assert [storage.read_json(*PARTS, f"{kind}.json")["step"] for kind in ("best", "last")] == [13, 12]
    assert checkpoints.load_best(third[0]) == 3.0
    assert all(map(torch.equal, third[0].state_dict().values(), made(1)[0].state_dict().values()))
    assert checkpoints.load_last(*third) == TrainProgress(12)
    assert all(map(torch.equal, state(*third), state(*second)))
    checkpoints.save_last(TrainProgress(14, finished=True), *first)
    assert checkpoints.load_last(*third) == TrainProgress(14, finished=True)
    assert sorted(storage.list(*PARTS, "last-00000014")) == ["state.pt"]  # the best weights count from here on
    assert all(map(torch.equal, state(*third), state(*second)))
    checkpoints.clear()
    assert storage.list(*PARTS) == []
    with pytest.raises(ArtifactError, match=r"runs/r/student holds no best checkpoint"):
        checkpoints.load_best(third[0])


def test_a_kill_before_the_pointer_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    checkpoints, first, restored = Checkpoints(storage, PARTS), made(0), made(2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def save_killed(step: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write_json", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save_last(TrainProgress(step), *made(1))

    save_killed(1)
    assert storage.list(*PARTS)
    assert checkpoints.load_last(*restored) is None
    checkpoints.save_last(TrainProgress(1), *first)
    save_killed(2)
    assert checkpoints.load_last(*restored) == TrainProgress(1)
    assert all(map(torch.equal, state(*restored), state(*first)))


def test_old_reports_lie_in_pieces_which_a_stale_owner_does_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 3)
    storage, model, progress = Storage(str(tmp_path)), made(0), TrainProgress()
    reports = [{"step": step, "validated": False, "train/loss": 1 / step} for step in range(1, 14)]
    checkpoints = Checkpoints(storage, PARTS, Owner.acquire(storage, "runs", "r"))

    def save(saves: Checkpoints, first: int, end: int) -> list[str]:
        progress.history += reports[first:end]
        saves.save_last(progress, *model)
        return sorted(name for name in storage.list(*PARTS) if name.startswith("history-"))

    assert save(checkpoints, 0, 3) == ["history-00000.json"]
    assert progress.history == []
    pieces = save(checkpoints, 3, 10)
    assert pieces == ["history-00000.json", "history-00001.json", "history-00002.json"]
    assert (progress.num_pieces, progress.history) == (3, reports[9:10])
    assert checkpoints.history() == reports[:10]
    newer = Owner.acquire(storage, "runs", "r")
    with pytest.raises(StaleOwner):
        save(checkpoints, 10, 13)
    assert sorted(name for name in storage.list(*PARTS) if name.startswith("history-")) == pieces
    assert [entry["step"] for entry in checkpoints.history()] == list(range(1, 11))
    for owner in (newer, None):
        assert len(save(Checkpoints(storage, PARTS, owner), 13, 13)) == 4
    assert checkpoints.history() == reports


def test_a_piece_that_a_killed_process_wrote_too_early_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 3)
    model, checkpoints = made(0), Checkpoints(Storage(str(tmp_path)), PARTS)

    def reports(*values: float) -> list[dict[str, float]]:
        return [{"step": step, "train/loss": value} for step, value in enumerate(values)]

    checkpoints.save_last(TrainProgress(2, history=reports(1.0, 1.0)), *model)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_commit", lambda *arguments: None)  # killed here
        checkpoints.save_last(TrainProgress(3, history=reports(1.0, 1.0, 5.0)), *model)
    assert checkpoints.history() == reports(1.0, 1.0)
    checkpoints.save_last(TrainProgress(4, history=reports(1.0, 1.0, 7.0, math.nan)), *model)
    assert str(checkpoints.history()) == str(reports(1.0, 1.0, 7.0, math.nan))


def test_a_checkpoint_of_a_gpu_is_read_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, saved, other = Checkpoints(Storage(str(tmp_path)), PARTS), made(0), made(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        checkpoints.save_last(PROGRESS, *saved)
    assert checkpoints.load_last(*other) == PROGRESS
    assert all(map(torch.equal, state(*other), state(*saved)))


def test_a_file_of_another_length_is_named(tmp_path: Path) -> None:
    storage, model = Storage(str(tmp_path)), made(0)
    checkpoints = Checkpoints(storage, PARTS)
    checkpoints.save_last(TrainProgress(1), *model)
    storage.write_bytes(b"cut", *PARTS, "last-00000001", "losses.safetensors")
    with pytest.raises(ArtifactError, match=r"last-00000001/losses.safetensors has 3 bytes, not \d+"):
        checkpoints.load_last(*model)


def test_a_stale_owner_neither_writes_nor_removes(tmp_path: Path) -> None:
    storage, model = Storage(str(tmp_path)), made(0)
    old = Checkpoints(storage, PARTS, Owner.acquire(storage, "runs", "r"))
    old.save_last(TrainProgress(1), *model)
    new = Checkpoints(storage, PARTS, Owner.acquire(storage, "runs", "r"))
    old.keep_best(2, 0.5, model[0])
    for write in (lambda: old.save_last(TrainProgress(2), *model), old.clear):
        with pytest.raises(StaleOwner):
            write()
    assert new.load_last(*model) == TrainProgress(1)
    assert sorted(storage.list(*PARTS)) == ["last-00000001", "last.json"]
    new.clear()
    assert storage.list(*PARTS) == []
