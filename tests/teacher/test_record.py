"""Recording and reading teacher signals: row by row what the teacher says online, whatever the order, the batch or the
number of workers, and after any interruption."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from kit.ranks import run_ranks
from kit.stages import wanted_signals
from kit.toy import Toy, make_toy

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.errors import ArtifactError, Interrupted
from raydistill.models.signals import LOGITS, Signal
from raydistill.pipeline import pool_teacher as actor
from raydistill.pipeline.job import Job, TeacherJob
from raydistill.storage import verified
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import file_digest
from raydistill.storage.storage import Storage
from raydistill.teacher import record as record_module
from raydistill.teacher import store
from raydistill.teacher import verify as verify_module
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.record import record
from raydistill.teacher.signals import OnlineSignals
from raydistill.teacher.store import cut_shards, find_shards, reopen_damaged, signal_artifact
from raydistill.teacher.verify import verify

SIGNALS = tuple(map(Signal, ("hidden_states[2]", "hidden_states[4]", "logits")))


def wanted(toy: Toy, teacher: str, signals: tuple[str, ...] = SIGNALS) -> dict[Signal, Artifact]:
    return wanted_signals(toy, signals, teacher)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 40)


def record_all(toy: Toy, items: dict[Signal, Artifact], **options: Any) -> None:
    options = {"tokens": 400, "device": Device(), "group": Group(), **options}
    record(toy.teacher(), toy.rows(), items, **options)


def assert_equal_online(
    toy: Toy, recorded: RecordedSignals, row_ids: np.ndarray, signals: tuple[Signal, ...] = SIGNALS
) -> None:
    rows = toy.rows()
    online = OnlineSignals(toy.teacher(), signals, Device()).read(rows.batch(row_ids))
    stored = recorded.rows(row_ids)
    assert stored.keys() == online.keys()
    for signal in signals:
        assert stored[signal].shape == online[signal].shape
        tolerance = 1e-5 if signal == "logits" else 2e-3  # half precision: 2^-11 of values up to 4
        torch.testing.assert_close(stored[signal].float(), online[signal].float(), rtol=1e-3, atol=tolerance)


def test_cached_equals_online_for_every_row_in_any_order(toy, small_shards):
    items = wanted(toy, "order")
    record_all(toy, items)
    recorded = RecordedSignals(items, toy.rows().num_rows, verify=True)
    order = np.random.default_rng(1).permutation(toy.rows().num_rows)
    for size in (1, 7, 32):
        for start in range(0, len(order), size):
            assert_equal_online(toy, recorded, order[start : start + size])


def test_what_hooks_and_derivatives_give_is_recorded_as_it_is_online(toy, small_shards):
    signals = tuple(map(Signal, ("gradients", "keys[4]", "queries[4]", "values[4]")))
    items = wanted(toy, "hooks", signals)
    record_all(toy, items)
    recorded = RecordedSignals(items, toy.rows().num_rows, verify=True)
    order = np.random.default_rng(1).permutation(toy.rows().num_rows)
    for start in range(0, len(order), 32):
        assert_equal_online(toy, recorded, order[start : start + 32], signals)


def test_the_teacher_speaks_in_evaluation_mode(toy, small_shards):
    first, second = wanted(toy, "eval-a", ("logits",)), wanted(toy, "eval-b", ("logits",))
    for items in (first, second):
        teacher = toy.teacher().train()
        record(teacher, toy.rows(), items, tokens=400, device=Device(), group=Group())
    rows = np.arange(toy.rows().num_rows)
    a, b = (RecordedSignals(items, len(rows)).rows(rows)["logits"] for items in (first, second))
    assert torch.equal(a, b)


def test_another_batch_budget_changes_nothing(toy, small_shards):
    small, large = wanted(toy, "budget-a", ("logits",)), wanted(toy, "budget-b", ("logits",))
    record_all(toy, small, tokens=50)
    record_all(toy, large, tokens=100_000)
    rows = np.arange(toy.rows().num_rows)
    a, b = (RecordedSignals(items, len(rows)).rows(rows)["logits"] for items in (small, large))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def count_shards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    original = record_module.record_shard

    def counting(teacher: Any, rows: Any, row_ids: Any, index: int, *rest: Any) -> Any:
        seen.append(index)
        return original(teacher, rows, row_ids, index, *rest)

    monkeypatch.setattr(record_module, "record_shard", counting)
    return seen


def test_an_interrupted_recording_goes_on_with_the_missing_shards(toy, small_shards, monkeypatch):
    items = wanted(toy, "interrupted")
    seen = count_shards(monkeypatch)
    num_shards = len(cut_shards(toy.rows().lengths))
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        record_all(toy, items, should_stop=lambda: next(answers))
    assert not any(item.exists() for item in items.values())
    assert seen == [0, 1]
    record_all(toy, items)
    assert seen == list(range(num_shards))
    assert_equal_online(toy, RecordedSignals(items, toy.rows().num_rows), np.arange(60))


def test_wanting_one_more_signal_records_that_one_only(toy, small_shards, monkeypatch):
    some, more = wanted(toy, "more", ("logits",)), wanted(toy, "more")
    record_all(toy, some)
    before = some["logits"].manifest()
    captured: list[set[str]] = []
    original = record_module.capture

    def noting(model: Any, inputs: Any, signals: Any) -> Any:
        captured.append(set(signals))
        return original(model, inputs, signals)

    monkeypatch.setattr(record_module, "capture", noting)
    record_all(toy, {signal: item for signal, item in more.items() if not item.exists()})
    assert all(signals == {"hidden_states[2]", "hidden_states[4]"} for signals in captured)
    assert more["logits"].manifest() == before


def test_a_damaged_shard_of_an_unfinished_recording_is_recorded_again(toy, small_shards, monkeypatch):
    items = wanted(toy, "damaged", ("logits",))
    answers = iter([False, False, False, True])
    with pytest.raises(Interrupted):
        record_all(toy, items, should_stop=lambda: next(answers))
    artifact = items["logits"]
    victim = Path(toy.storage.path(artifact.kind, artifact.key, sorted(artifact.names())[1]))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    seen = count_shards(monkeypatch)
    record_all(toy, items)
    assert 1 in seen
    assert 0 not in seen
    assert find_shards(artifact).keys() == set(range(len(cut_shards(toy.rows().lengths))))
    RecordedSignals(items, toy.rows().num_rows, verify=True)


def test_a_changed_bit_of_a_finished_recording_is_found_and_named(toy, small_shards):
    items = wanted(toy, "flipped", ("logits",))
    record_all(toy, items)
    artifact = items["logits"]
    victim = Path(toy.storage.path(artifact.kind, artifact.key, sorted(artifact.manifest().files)[0]))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match=victim.name):
        RecordedSignals(items, toy.rows().num_rows, verify=True)


def record_on_rank(folder: Path) -> dict[str, Any]:
    """Run on each rank: finish the recording that another number of workers began."""
    store.SHARD_ROWS = 40
    toy = make_toy(folder)
    items = wanted(toy, "ranks")
    seen: list[int] = []
    original = record_module.record_shard
    record_module.record_shard = lambda *a: (seen.append(a[3]), original(*a))[1]
    record(toy.teacher(), toy.rows(), items, tokens=400, device=Device(), group=Group())
    return {"seen": seen, "rank": Group().rank}


def test_another_number_of_workers_continues_the_same_recording(small_shards, tmp_path):
    toy = make_toy(tmp_path)
    items = wanted(toy, "ranks")
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        record_all(toy, items, should_stop=lambda: next(answers))
    first, second = run_ranks(record_on_rank, 2, tmp_path / "ranks", tmp_path)
    num_shards = len(cut_shards(toy.rows().lengths))
    assert sorted(first["seen"] + second["seen"]) == list(range(1, num_shards))
    assert first["seen"]
    assert second["seen"]
    for start in range(0, toy.rows().num_rows, 64):
        order = np.arange(start, min(start + 64, toy.rows().num_rows))
        assert_equal_online(toy, RecordedSignals(items, toy.rows().num_rows, verify=True), order)


def look_on_rank(folder: Path, url: str) -> tuple[list[str], list[str]]:
    """Run on each rank: look through recorded signals twice, what it read each time."""
    verified.SETTLED_SECONDS = 0.0
    artifacts = [Artifact(Storage(url), "signals", key) for key in KEYS]
    seen: list[str] = []
    read = verify_module.read_file
    verify_module.read_file = lambda *place: (seen.append(place[-1]), read(*place))[1]  # type: ignore[assignment]
    found = [verify(artifacts, Group()) for _ in range(2)]
    assert [sorted(files) for files in found[1]] == [sorted(artifact.names()) for artifact in artifacts]
    assert found[0] == found[1]
    return seen, sorted(reopen_damaged(artifacts[0], found[0][0])) if Group().is_first else []


KEYS = ("0" * 20, "1" * 20)


def test_ranks_share_the_looking_and_none_of_it_is_done_twice(tmp_path):
    made = [Artifact(Storage(str(tmp_path)), "signals", key, {}) for key in KEYS]
    for artifact in made:
        files = {}
        for index in range(5):
            path = tmp_path / "shard"
            path.write_bytes(f"{artifact.key} {index}".encode())
            files[name] = artifact.put(path, name := store.shard_name(index, file_digest(path)))
        artifact.seal(files)
    time.sleep(0.05)  # a few ticks of the disk's clock
    names = [artifact.names() for artifact in made]
    (first, damaged), (second, _) = run_ranks(look_on_rank, 2, tmp_path / "a", tmp_path, str(tmp_path))
    assert sorted(first + second) == sorted(names[0] + names[1])
    assert abs(len(first) - len(second)) <= 1
    assert damaged == []
    victim = Path(tmp_path, "signals", KEYS[0], names[0][3])
    victim.write_bytes(victim.read_bytes().replace(b" 3", b" 4"))
    time.sleep(0.05)
    (first, damaged), (second, _) = run_ranks(look_on_rank, 2, tmp_path / "b", tmp_path, str(tmp_path))
    assert first + second == damaged == [victim.name]
    assert not made[0].exists()
    assert not victim.exists()


def test_a_look_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(verify_module, "AT_ONCE", 2)
    artifact = Artifact(Storage(str(tmp_path)), "signals", KEYS[0])
    for index in range(5):
        path = tmp_path / "shard"
        path.write_bytes(f"{index}".encode())
        artifact.put(path, store.shard_name(index, file_digest(path)))
    time.sleep(0.05)
    answers, told = iter([False] * 3 + [True]), []
    with pytest.raises(Interrupted):
        verify([artifact], Group(), should_stop=lambda: next(answers))
    (found,) = verify([artifact], Group(), progress=lambda *done: told.append(done))
    assert told == [(2, 2)]
    assert find_shards(artifact, found).keys() == set(range(5))


def test_shards_hold_every_row_once_and_are_bounded(monkeypatch):
    lengths = np.random.default_rng(0).integers(2, 500, 3000).astype(np.int32)
    monkeypatch.setattr(store, "SHARD_TOKENS", 20_000)
    shards = cut_shards(lengths)
    assert sorted(np.concatenate(shards)) == list(range(3000))
    assert all(len(shard) <= 1000 and lengths[shard].sum() <= 20_000 for shard in shards)
    assert [lengths[s].max() for s in shards] == sorted((lengths[s].max() for s in shards), reverse=True)


def test_shards_are_known_by_number_however_many_there_are(tmp_path):
    artifact = Artifact(Storage(str(tmp_path)), "signals", "0123456789abcdef0123")
    for index in (7, 99_999, 100_000, 1_234_567):
        path = tmp_path / "shard.arrow"
        path.write_bytes(f"shard {index}".encode())
        artifact.put(path, store.shard_name(index, file_digest(path)))
    assert list(store.find_shards(artifact)) == [7, 100_000, 1_234_567, 99_999]


@pytest.mark.parametrize("longest", [3, 90, 400])
def test_shards_are_cut_one_row_after_another(monkeypatch, longest):
    """The cut belongs to what is recorded already: it may never change."""
    monkeypatch.setattr(store, "SHARD_TOKENS", 300)
    monkeypatch.setattr(store, "SHARD_ROWS", 20)
    lengths = np.random.default_rng(0).integers(1, longest, 500).astype(np.int32)
    expected: list[list[int]] = [[]]
    for row in np.argsort(-lengths, kind="stable"):
        if expected[-1] and (len(expected[-1]) == 20 or lengths[expected[-1]].sum() + lengths[row] > 300):
            expected.append([])
        expected[-1].append(int(row))
    assert [shard.tolist() for shard in cut_shards(lengths)] == expected
    assert cut_shards(lengths[:0]) == []


def test_a_teacher_of_a_pool_cuts_the_shards_once(toy, small_shards, monkeypatch):
    cut: list[int] = []
    monkeypatch.setattr(actor, "cut_shards", lambda lengths: (cut.append(len(lengths)), cut_shards(lengths))[1])
    nothing: Any = None
    teachers = (TeacherJob("", 1.0, nothing, toy.tokens, ""),)
    job = Job(nothing, "run", toy.storage, nothing, nothing, {}, "float32", None, teachers)
    teacher = actor.Teacher(job, None)
    teacher.model = toy.teacher()
    teacher.context = cast(Any, SimpleNamespace(rows={"train": toy.rows()}, inference_tokens=400, device=Device()))
    items = wanted(toy, "pooled", ("logits",))
    for index in range(3):
        teacher.record("train", index, items)
    assert cut == [toy.rows().num_rows]
    assert find_shards(items["logits"]).keys() == {0, 1, 2}


def num_maps(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


def test_few_shards_are_mapped_at_a_time(toy, small_shards, monkeypatch):
    """Linux allows a process 65,530 maps."""
    items = wanted(toy, "maps")
    record_all(toy, items)
    rows, folder = toy.rows(), Path(toy.storage.root) / "signals"
    whole = RecordedSignals(items, rows.num_rows)
    assert num_maps(folder) >= 2 * len(SIGNALS) + 1
    order = np.random.default_rng(1).permutation(rows.num_rows)
    expected = whole.rows(order)
    del whole
    assert num_maps(folder) == 0
    monkeypatch.setattr("raydistill.teacher.cached.MAX_MAPS", 2 * len(SIGNALS))
    bounded = RecordedSignals(items, rows.num_rows)
    read = bounded.rows(order)
    assert all(torch.equal(read[signal], expected[signal]) for signal in SIGNALS)
    assert 0 < num_maps(folder) <= 2 * len(SIGNALS)


def test_the_limit_of_maps_is_not_called_damage(toy, small_shards, monkeypatch):
    items = wanted(toy, "limit", ("logits",))
    record_all(toy, items)
    num_rows = toy.rows().num_rows

    def full(path: str) -> Any:
        raise OSError("Memory mapping file failed: Cannot allocate memory")

    monkeypatch.setattr("pyarrow.memory_map", full)
    with pytest.raises(ArtifactError, match=r"vm\.max_map_count") as raised:
        RecordedSignals(items, num_rows)
    assert "remove" not in str(raised.value)


def test_values_beyond_half_precision_are_refused(toy, tmp_path):
    values = torch.full((3, 4), 1e6)
    with pytest.raises(ArtifactError, match=r"teacher\.mode: online"):
        store.write_shard(tmp_path / "x.arrow", np.array([0]), np.array([3]), values, Signal("hidden_states[1]"))


@pytest.mark.parametrize("change", ["teacher", "tokens", "dtype", "signal", "split"])
def test_a_change_of_teacher_rows_or_dtype_is_a_miss(tmp_path, change):
    given = {"signal": "logits", "split": "train", "teacher_digest": "a", "tokens_digest": "b", "dtype": "float32"}
    names = {"teacher": "teacher_digest", "tokens": "tokens_digest"}
    storage = Storage(str(tmp_path))

    def key(values: dict[str, str]) -> str:
        rest = {k: v for k, v in values.items() if k not in ("signal", "split")}
        return signal_artifact(storage, values["signal"], values["split"], **rest).key

    assert key(given) == key(dict(given))
    assert key(given) != key(given | {names.get(change, change): "other"})


def test_reading_only_what_the_manifest_names(toy, small_shards):
    """A second process may have recorded a shard beside ours, in a file of another name."""
    items = wanted(toy, "beside", ("logits",))
    record_all(toy, items)
    artifact = items["logits"]
    folder = Path(toy.storage.path(artifact.kind, artifact.key))
    store.write_shard(folder / "00000-ffffffffffffffff.arrow", np.arange(5), np.ones(5), torch.zeros(5, 3), LOGITS)
    recorded = RecordedSignals(items, toy.rows().num_rows)
    assert recorded.rows(np.arange(5))["logits"].abs().min() > 0
