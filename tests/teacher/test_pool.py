"""A pool of teachers: the same student as with the teacher online, whoever dies, comes late or is slow."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from kit.runs import check_artifacts, read_weights, same_weights
from kit.tiny import save_tiny
from kit.toy import relative_difference, toy_config, without_key_biases

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.loading import load_config
from raydistill.config.teacher import MODES, ModelTeacher, Pool
from raydistill.errors import ArtifactError, Interrupted, ModelError, RaydistillError, StaleOwner, TeacherError
from raydistill.models.folder import settled_models
from raydistill.models.signals import LOGITS
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.job import Job
from raydistill.pipeline.phases import run_phases
from raydistill.pipeline.pool_teacher import Teacher
from raydistill.pipeline.pooled import driver_context, find_teacher, find_unrecorded
from raydistill.pipeline.prepare import prepare
from raydistill.pipeline.teaching import agreed, fit_teacher, record_teacher
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board
from raydistill.storage.garbage import collect_garbage, refer, referred
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.teacher.pool import teachers
from raydistill.teacher.pool.packing import pack, unpack
from raydistill.teacher.pool.recording import record_in_pool
from raydistill.teacher.pool.signals import MAX_FAILURES, PoolFeed, PoolSignals
from raydistill.teacher.pool.teachers import TeacherPool, was_preempted

HIDDEN = {"type": "hidden_mse", "layers": [[1, 2], [2, 4]], "weight": 0.1}
NUM_STEPS = 36
OPTIONS = {"num_cpus": 0.5}


def make_job(folder: Path, mode: str, **changes: Any) -> Job:
    """A run whose teacher needs no fine-tuning: what is tested is how it speaks."""
    made = toy_config(
        folder,
        teacher__mode=mode,
        stages__distill__losses__hidden=HIDDEN,
        stages__distill__num_epochs=3,
        evaluate__baseline=False,
        train__num_workers=1,
        train__tokens_per_micro_batch=120,
        **changes,
    )
    made["teacher"].pop("finetune")
    made["teacher"]["model"] = str(folder / "classifier")
    config = load_config(made)
    prepared = prepare(config, Storage(config.storage))
    return replace(prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None), run=None)  # type: ignore[arg-type]


def local_context(job: Job, stop: Callable[[], bool] = lambda: False) -> Context:
    board = Board(job.storage, job.board_parts, job.owner, listener=lambda entry: None, stop=stop)
    return Context(job, Group(), Device("cpu", job.dtype), board)


def student(job: Job, feed: PoolFeed | None = None) -> dict[str, torch.Tensor]:
    """Run the phases in this process; the student's weights."""
    context = local_context(job)
    context.feed = feed
    return read_weights(run_phases(context).student.local() / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pool")
    save_tiny(made / "classifier", "bert", num_layers=4, seed=3, labels=("film", "money", "sport"))
    return made


def test_ranks_and_teachers_refuse_other_weights_than_the_drivers(tmp_path: Path) -> None:
    """A teacher's folder that another node has otherwise, or that is written to while a run is under way."""
    names = {"labels": ("film", "money", "sport"), "num_layers": 4}
    save_tiny(tmp_path / "classifier", "bert", seed=3, **names)
    with settled_models():
        job = make_job(tmp_path, "online")
        Teacher(job, None).open()
        fit_teacher(local_context(job))
        save_tiny(tmp_path / "classifier", "bert", seed=4, **names)
        for use in (lambda: Teacher(job, None).open(), lambda: fit_teacher(local_context(job))):
            with pytest.raises(ModelError, match="is not here what it was where the run began"):
                use()


def test_ranks_that_have_several_teachers_all_say_so(folder: Path) -> None:
    teacher = recipes.identify_teacher(ModelTeacher(model=str(folder / "classifier")), None)
    ranks: Any = SimpleNamespace(group=SimpleNamespace(gather=lambda digest: [digest, digest, "another"]))
    with pytest.raises(ModelError, match=r"not the same on all workers \(digests by rank 0: .*, 2: another\)"):
        agreed(ranks, teacher)
    ranks.group.gather = lambda digest: [digest, digest]
    assert agreed(ranks, teacher) is teacher


@pytest.fixture(scope="module")
def online(folder: Path) -> dict[str, torch.Tensor]:
    return student(make_job(folder, "online"))


@dataclass
class Supervised:
    """A pool that a thread looks after, as the driver does beside a worker group."""

    pool: TeacherPool
    told: list[str] = field(default_factory=list)
    error: BaseException | None = None

    def feed(self, max_ahead_bytes: int = 2**20) -> PoolFeed:
        return PoolFeed(self.pool.directory, max_ahead_bytes)


@contextmanager
def supervised(job: Job, most: int, least: int = 1, kind: type = Teacher, **options: Any) -> Iterator[Supervised]:
    told: list[str] = []
    pool = TeacherPool(
        Pool(min=least, max=most), {**OPTIONS, **options}, kind, (job, None), lambda entry: told.append(entry["note"])
    )
    made, ended = Supervised(pool, told), threading.Event()

    def supervise() -> None:
        while not ended.wait(0.05):
            try:
                pool.supervise()
            except RaydistillError as error:
                made.error = error
                return

    with pool:
        thread = threading.Thread(target=supervise)
        thread.start()
        try:
            yield made
        finally:
            ended.set()
            thread.join()


def test_a_teacher_that_hangs_is_told_of_and_then_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    killed: list[Any] = []
    pool = TeacherPool(Pool(min=1, max=3), {}, Teacher, (), lambda entry: told.append(entry["note"]))
    clock, answered = [0.0], list[Any]()
    monkeypatch.setattr(teachers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(teachers.ray, "wait", lambda answers, **options: (answered, []))
    monkeypatch.setattr(teachers.ray, "get", lambda answer: True)
    monkeypatch.setattr(teachers.ray, "kill", killed.append)
    monkeypatch.setattr(teachers, "has_place", lambda actor: False)
    hung, loading = (teachers.Member(i, f"actor {i}", f"answer {i}", is_ready=i == 1) for i in (1, 2))
    pool._members = [hung, loading]
    for clock[0], num_told in ((599.0, 0), (601.0, 1), (3599.0, 1)):
        pool._look()
        assert (len(told), killed) == (num_told, [])
    pool._slowest = 400.0  # another teacher was as slow as that
    clock[0] = 3999.0
    pool._look()
    assert not killed
    clock[0] = 4001.0
    pool._look()
    assert killed == ["actor 1"]
    assert pool._members == [loading]  # which may wait for room
    assert told == [
        "teacher 1 has not answered for 10 minutes: its work is slow, or it hangs",
        "teacher 1 has not answered for 67 minutes and is replaced",
    ]


def test_a_teacher_that_hangs_while_it_loads_is_told_of_and_then_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has waited for its place; another one loads meanwhile, and is there."""
    told: list[str] = []
    killed: list[Any] = []
    pool = TeacherPool(Pool(min=1, max=2), {}, Teacher, (), lambda entry: told.append(entry["note"]))
    clock, placed, answered = [0.0], set[str](), list[Any]()
    monkeypatch.setattr(teachers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(teachers.ray, "wait", lambda answers, **options: (answered, []))
    monkeypatch.setattr(teachers.ray, "get", lambda answer: True)
    monkeypatch.setattr(teachers.ray, "kill", killed.append)
    monkeypatch.setattr(teachers, "has_place", placed.__contains__)
    hung, slow = (teachers.Member(i, f"actor {i}", f"answer {i}") for i in (1, 2))
    pool._members = [hung, slow]
    clock[0] = 9000.0
    pool._look()
    assert not told
    placed.add("actor 1")
    clock[0] = 9002.0
    pool._look()
    placed.add("actor 2")
    for clock[0], num_told in ((9601.0, 0), (9603.0, 1), (10_200.0, 1), (10_202.0, 2), (10_801.0, 2)):
        pool._look()
        assert (len(told), killed) == (num_told, [])
    slow.actor = SimpleNamespace(is_alive=SimpleNamespace(remote=lambda: "answer 3"))
    answered[:] = ["answer 2"]
    pool._look()
    assert slow.is_ready
    assert pool._slowest_start == 1200.0
    answered.clear()
    clock[0] = 9002.0 + 1800.0 + 10 * 1200.0
    slow.asked_at = clock[0]
    pool._look()
    assert killed == ["actor 1"]
    assert pool._members == [slow]
    assert told == [
        "teacher 1 has been loading for 10 minutes: its weights come slowly, or it hangs",
        "teacher 2 has been loading for 10 minutes: its weights come slowly, or it hangs",
        "teacher 1 has been loading for 230 minutes and is replaced",
    ]


def test_a_slow_teacher_that_answers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TeacherPool(Pool(min=1, max=1), {}, Teacher, (), lambda entry: None)
    monkeypatch.setattr(teachers.time, "monotonic", lambda: 5000.0)
    monkeypatch.setattr(teachers.ray, "wait", lambda answers, **options: (answers, []))
    monkeypatch.setattr(teachers.ray, "get", lambda answer: True)
    slow = teachers.Member(1, SimpleNamespace(is_alive=SimpleNamespace(remote=object)), "answer", is_ready=True)
    pool._members = [slow]
    pool._look()
    assert pool._members == [slow]
    assert pool._slowest == 5000.0


def test_an_actor_that_hangs_while_it_begins_has_a_place_and_one_that_waits_for_room_has_none(
    ray_cluster: Path,
) -> None:
    class Hangs:
        def __init__(self) -> None:
            time.sleep(600)

        def open(self) -> None:
            raise AssertionError

    make: Any = ray.remote(Hangs).options
    hung, waiting = make(num_cpus=0).remote(), make(num_cpus=0, resources={"nowhere": 1}).remote()
    answers = [actor.open.remote() for actor in (hung, waiting)]
    try:
        deadline = time.monotonic() + 60
        while not teachers.has_place(hung) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (teachers.has_place(hung), teachers.has_place(waiting)) == (True, False)
    finally:
        for actor in (hung, waiting):
            ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):  # one that hangs in it can be ended
        ray.get(answers[0], timeout=30)


def signal_lines(counts: Path, begin: int = 0) -> list[list[str]]:
    return [line.split() for line in counts.read_text().splitlines()[begin:] if line.startswith("signals ")]


def num_lines(counts: Path) -> int:
    return len(counts.read_text().splitlines())


def test_packed_tensors_come_back_bit_by_bit() -> None:
    tensors = {
        "logits": torch.randn(3, 2),
        "hidden_states[1]": torch.randn(5, 4).bfloat16(),
        "hidden_states[2]": torch.randn(0, 4, dtype=torch.float16),
    }
    back = unpack(pack(tensors))
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_what_a_pool_records_and_from_what_is_referred_to_before_it_begins(tmp_path: Path, folder: Path) -> None:
    """Recording may take longer than the day after which what no run refers to goes; and nothing is forgotten by it."""
    job = make_job(folder, "cached", storage=str(tmp_path / "storage"))
    context = local_context(job)
    teacher = find_teacher(context)
    assert teacher is not None
    _, recorded = record_teacher(context, teacher)
    sealed = recorded["train"]
    sealed["logits"].unseal()
    refer(job.storage, job.run_key, [Artifact(job.storage, "evaluation", "0" * 20)], "in-mlflow")
    later = driver_context(replace(job, owner=Owner.acquire(job.storage, "runs", job.run_key)))
    wanted = find_unrecorded(later, teacher, {"train": frozenset(sealed)})
    assert [*wanted["train"]] == ["logits"]
    names = {str(artifact) for artifact in [job.data, job.tokens, *sealed.values()]}
    kept = {str(artifact) for artifact in referred(job.storage, job.run_key)}
    assert names | {"evaluation/" + "0" * 20} <= kept
    assert job.storage.read_json("runs", job.run_key, "run.json")["run_id"] == "in-mlflow"
    assert collect_garbage(job.storage, older_than_seconds=0) == []
    with pytest.raises(StaleOwner):  # a worker of the driver before, whose list is older
        context.report.has(Artifact(job.storage, "student", "0" * 20), "student")


def test_a_pool_refers_to_a_new_run_before_it_records(tmp_path: Path, folder: Path) -> None:
    job = make_job(folder, "cached", storage=str(tmp_path / "storage"))
    context = driver_context(job)
    teacher = find_teacher(context)
    assert teacher is not None
    wanted = find_unrecorded(context, teacher, {"train": frozenset({LOGITS})})
    job.storage.write_bytes(b"shard", *str(wanted["train"]["logits"]).split("/"), "00000-0.arrow")
    assert collect_garbage(job.storage, older_than_seconds=0) == []


@pytest.mark.parametrize("rank", range(3))
def test_requests_go_round_all_teachers_and_each_rank_begins_with_another(rank: int) -> None:
    """Also where every answer is there before the next request, and all teachers have equally little to do."""
    asked: list[int] = []

    def teacher(number: int) -> Any:
        return SimpleNamespace(signals=SimpleNamespace(remote=lambda *arguments: asked.append(number)))

    signals = PoolSignals(None, {LOGITS: 1}, np.ones(8, dtype=int), 0, rank)
    signals._teachers = {number: teacher(number) for number in (3, 4, 6)}
    for _ in range(6):
        request = signals._request(np.arange(2))
        signals._load[request.teacher] -= 1  # answered
    assert sorted(asked) == [3, 3, 4, 4, 6, 6]
    assert asked[:3] == asked[3:]
    assert asked[0] == {0: 3, 1: 4, 2: 3}[rank]
    signals._load[4] = 5
    asked.clear()
    for _ in range(2):
        signals._request(np.arange(2))
    assert 4 not in asked


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ray.exceptions.RayActorError(preempted=True), True),
        (ray.exceptions.ActorDiedError(), False),
        (ray.exceptions.NodeDiedError("gone"), False),  # perhaps for want of memory
        (ray.exceptions.WorkerCrashedError(), False),
        (RuntimeError(), False),
    ],
)
def test_a_teacher_that_was_preempted_is_no_fault_of_its_work(error: Exception, expected: bool) -> None:
    assert was_preempted(error) is expected


def failing(folder: Path, how_many: int, error: str, kind: type[Exception] = RuntimeError) -> type:
    """Teachers of which the first so many fail at all work. Made in a function: Ray then sends it as it is."""
    folder.mkdir()

    class Failing(Teacher):
        def open(self) -> str:
            number = 0
            while True:
                try:
                    (folder / str(number)).touch(exist_ok=False)
                    break
                except FileExistsError:
                    number += 1
            self.fails = number < how_many
            return super().open()

        def signals(self, row_ids: Any, needs: Any) -> Any:
            if self.fails:
                raise kind(error)
            return super().signals(row_ids, needs)

        def record(self, split: str, index: int, wanted: Any) -> Any:
            if self.fails:
                raise kind(error)
            return super().record(split, index, wanted)

    return Failing


@pytest.mark.slow
class TestFailing:
    def test_a_teacher_that_fails_is_replaced_and_the_student_is_the_same(
        self, folder: Path, online: Mapping[str, torch.Tensor], ray_cluster: Path, tmp_path: Path
    ) -> None:
        """As on a device with a fault, which answers faster than all others and so would get most of the work."""
        job = make_job(folder, "pool")
        forget_student(job)
        kind = failing(tmp_path / "opened", 1, "CUDA error: uncorrectable ECC error")
        with supervised(job, 2, least=2, kind=kind) as made:
            assert same_weights(student(job, made.feed()), online)
            assert made.error is None
            assert made.pool._number >= 3  # the two, and the one that took its place

    def test_rows_at_which_every_teacher_fails_end_the_run_with_the_reason(
        self, folder: Path, ray_cluster: Path, tmp_path: Path
    ) -> None:
        job = make_job(folder, "pool")
        forget_student(job)
        with supervised(job, 1, kind=failing(tmp_path / "opened", 99, "CUDA out of memory")) as made:
            with pytest.raises(TeacherError, match="A teacher failed: RuntimeError: CUDA out of memory"):
                student(job, made.feed())
            wait_for(lambda: made.error is not None)
        assert "train.tokens_per_micro_batch" in str(made.error)
        assert len(list((tmp_path / "opened").iterdir())) == MAX_FAILURES

    @pytest.mark.parametrize(("how_many", "error"), [(1, RuntimeError), (99, RuntimeError), (99, ArtifactError)])
    def test_shards_go_to_other_teachers(
        self,
        how_many: int,
        error: type[Exception],
        tmp_path: Path,
        folder: Path,
        ray_cluster: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("raydistill.teacher.store.SHARD_ROWS", 20)
        monkeypatch.setattr("raydistill.teacher.pool.recording.MAX_FAILURES", 2)
        job = make_job(folder, "cached", storage=str(tmp_path / "storage"))
        context = driver_context(job)
        teacher = find_teacher(context)
        assert teacher is not None
        wanted = find_unrecorded(context, teacher, {"train": frozenset({LOGITS})})
        kind = failing(tmp_path / "opened", how_many, "of each", error)
        options = {**OPTIONS, "runtime_env": {"env_vars": {"RAYDISTILL_SHARD_ROWS": "20"}}}
        pool = TeacherPool(Pool(min=2, max=2), options, kind, (job, None), lambda entry: None)
        given: dict[str, Any] = {"owner": job.owner, "stop": threading.Event(), "show": lambda entry: None}
        if how_many == 1:
            with pool:
                record_in_pool(pool, context.rows, wanted, **given)
            assert pool._number >= 3
            check_artifacts(job.storage)
            assert find_unrecorded(context, teacher, {"train": frozenset({LOGITS})}) == {}
            return
        message = "^of each$" if error is ArtifactError else r"2 attempts to record shard .* RuntimeError: of each"
        with pool, pytest.raises(RaydistillError, match=message):
            record_in_pool(pool, context.rows, wanted, **given)


@pytest.mark.slow
class TestFeeding:
    def test_the_student_is_that_of_online_and_within_half_precision_that_of_cached(
        self, folder: Path, online: Mapping[str, torch.Tensor], ray_cluster: Path, measured: Any
    ) -> None:
        job = make_job(folder, "pool")
        with supervised(job, 1) as made:
            fed = student(job, made.feed())
            wait_for(lambda: made.pool.ready == {})  # the workers said that they need them no more
        assert same_weights(fed, online)
        cached = student(make_job(folder, "cached"))
        difference = relative_difference(without_key_biases(cached), without_key_biases(dict(online)))
        assert 0 < max(difference.values()) < 5e-3
        measured.line(
            f"weights of pool against online: equal; of cached (float16): within {max(difference.values()):.1e}"
        )

    def test_teachers_that_die_and_come_change_nothing(
        self, folder: Path, online: Mapping[str, torch.Tensor], ray_cluster: Path, measured: Any
    ) -> None:
        """Killed at random moments; of each only what it held is computed again."""
        job = make_job(folder, "pool", seed=0, tracking__run_name="killed")
        draw, begin = np.random.default_rng(7), num_lines(ray_cluster)
        killed: list[int] = []
        moments = sorted(int(n) for n in draw.integers(5, 60, 3))
        with supervised(job, 2) as made:
            thread = threading.Thread(target=lambda: results.append(student(job, made.feed(max_ahead_bytes=0))))
            results: list[dict[str, torch.Tensor]] = []
            forget_student(job)
            thread.start()
            for moment in moments:
                is_due = partial(newest_worker, ray_cluster, begin, moment, killed)
                wait_for(lambda due=is_due: due() is not None or not thread.is_alive())
                if (pid := is_due()) is None:
                    break
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            thread.join(120)
        assert len(killed) == 3
        assert same_weights(results[0], online)
        asked = [tuple(line[1:4]) for line in signal_lines(ray_cluster, begin)]
        assert 0 < len({line[-1] for line in signal_lines(ray_cluster, begin)}) <= 2 + len(killed)
        repeated = len(asked) - num_micro_batches(job)
        assert repeated <= len(killed) * 2 * most_per_step(job)
        measured.fault(
            "teachers of a pool, 3 times",
            f"micro-batches {', '.join(map(str, moments))} of {num_micro_batches(job)}",
            f"{repeated} micro-batches, 0 steps",
        )

    def test_teachers_wait_for_the_student(self, folder: Path, ray_cluster: Path) -> None:
        """Without bytes to spare no more than the next step is computed ahead."""
        job = make_job(folder, "pool")
        context = local_context(job)
        teacher = find_teacher(context)
        assert teacher is not None
        with supervised(job, 1) as made:
            context.feed = made.feed(max_ahead_bytes=0)
            begin = num_lines(ray_cluster)
            from transformers import AutoConfig

            rows = context.rows["train"]
            signals = context.feed.signals({LOGITS}, AutoConfig.from_pretrained(teacher.folder), rows.lengths, 0)
            steps = [[np.arange(step * 4, step * 4 + 4)] for step in range(10)]
            signals.foresee(iter(steps))
            for done, parts in enumerate(steps):
                while not signals.wait(parts):
                    pass
                signals.read(rows.batch(parts[0]))
                time.sleep(0.1)
                assert len(signal_lines(ray_cluster, begin)) <= done + 2
        assert len(signal_lines(ray_cluster, begin)) == len(steps)

    def test_without_any_teacher_it_waits_and_says_so(
        self, folder: Path, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raydistill.teacher.pool.teachers.SILENT_SECONDS", 0.5)
        job = make_job(folder, "pool")
        forget_student(job)
        asked = threading.Event()
        with supervised(job, 1, resources={"nowhere": 1}) as made:
            context = local_context(job, stop=asked.is_set)
            context.feed = made.feed()
            threading.Timer(3.0, asked.set).start()
            with pytest.raises(Interrupted, match="stopped"):
                run_phases(context)
        assert len(made.told) == 1
        assert "0 of at least 1 there" in made.told[0]
        assert "teacher.pool.resources" in made.told[0]

    def test_teachers_that_cannot_be_loaded_end_the_run_with_the_reason(
        self, folder: Path, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raydistill.teacher.pool.teachers.RETRY_SECONDS", 0.1)
        job = make_job(folder, "pool")
        missing = replace(job, teachers=(replace(job.teachers[0], tokens=replace(job.tokens, key="0" * 20)),))
        with supervised(missing, 2) as made:
            wait_for(lambda: made.error is not None)
        assert "There is no artefact tokens/" in str(made.error)


@pytest.mark.slow
class TestRecording:
    def test_shards_recorded_by_a_pool_are_those_of_a_worker(
        self, tmp_path: Path, folder: Path, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch, measured: Any
    ) -> None:
        """One of two teachers is killed on the way; every artefact has the same content as one worker's."""
        monkeypatch.setattr("raydistill.teacher.store.SHARD_ROWS", 20)
        alone, pooled = (make_job(folder, "cached", storage=str(tmp_path / name)) for name in ("alone", "pooled"))
        context = local_context(alone)
        teacher = find_teacher(context)
        assert teacher is not None
        _, recorded = record_teacher(context, teacher)
        theirs = driver_context(pooled)
        signals = {split: frozenset(names) for split, names in recorded.items()}
        wanted = find_unrecorded(theirs, teacher, signals)
        assert wanted.keys() == recorded.keys()
        begin = num_lines(ray_cluster)
        options = {"runtime_env": {"env_vars": {"RAYDISTILL_SHARD_ROWS": "20", "RAYDISTILL_SHARD_SECONDS": "0.2"}}}
        killed: list[int] = []

        def kill() -> None:
            wait_for(lambda: len(shard_lines(ray_cluster, begin)) >= 3)
            killed.append(int(shard_lines(ray_cluster, begin)[-1].split()[-1]))
            os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        pool = TeacherPool(Pool(min=1, max=2), {**OPTIONS, **options}, Teacher, (pooled, None), lambda entry: None)
        given: dict[str, Any] = {"owner": pooled.owner, "stop": threading.Event(), "show": lambda entry: None}
        with pool:
            record_in_pool(pool, theirs.rows, wanted, **given)
            wanted["train"]["logits"].unseal()  # as where the driver was killed before it sealed the last one
            record_in_pool(pool, theirs.rows, {"train": wanted["train"]}, **given)
        thread.join()
        for split, names in recorded.items():
            for name, artifact in names.items():
                assert wanted[split][name].digest == artifact.digest
        check_artifacts(pooled.storage)
        shards = shard_lines(ray_cluster, begin)
        repeated = len(shards) - len({line.rsplit(" ", 1)[0] for line in shards})
        assert repeated <= 2
        measured.fault("one of two teachers that record", "shard 3", f"{repeated} shards")
        assert find_unrecorded(theirs, teacher, signals) == {}


def shard_lines(counts: Path, begin: int) -> list[str]:
    return [line for line in counts.read_text().splitlines()[begin:] if line.startswith("shard ")]


def forget_student(job: Job) -> None:
    """Remove the student of an earlier test of the same recipe."""
    teacher = recipes.identify_teacher(job.config.teacher, None)
    artifact = recipes.student_artifact(job.config, job.storage, teacher, job.tokens.digest, job.dtype, MODES["pool"])
    artifact.delete()
    job.storage.delete("runs", job.run_key, "student")


def newest_worker(counts: Path, begin: int, at_least: int, without: list[int]) -> int | None:
    """The process that computed the newest of so many micro-batches; None while there are fewer, or it is dead."""
    lines = signal_lines(counts, begin)
    pid = int(lines[-1][-1]) if len(lines) >= at_least else 0
    return pid if pid and pid not in without else None


def micro_batches_of(job: Job) -> list[int]:
    """Micro-batches of each step."""
    from raydistill.data.batches import BatchPlan, micro_batches

    rows = local_context(job).rows["train"]
    size = job.config.train.global_batch_size
    plan = BatchPlan(np.arange(rows.num_rows), rows.lengths, rows.targets.labeled, seed=0, global_batch_size=size)
    tokens = job.config.train.tokens_per_micro_batch
    return [len(micro_batches(plan.batch(step), rows.lengths, tokens=tokens)) for step in range(NUM_STEPS)]


def num_micro_batches(job: Job) -> int:
    """Micro-batches of the whole training, and one of the check before it."""
    return 1 + sum(micro_batches_of(job))


def most_per_step(job: Job) -> int:
    """The most that a teacher can hold of a step; without bytes to spare the next one is computed beside it."""
    return max(micro_batches_of(job))


@pytest.mark.slow
def test_teachers_that_find_no_room_end_the_run_after_the_setting(folder, ray_cluster, monkeypatch):
    monkeypatch.setattr("raydistill.teacher.pool.teachers.LOADING_SECONDS", 0.5)
    monkeypatch.setattr("raydistill.teacher.pool.teachers.SILENT_SECONDS", 0.2)
    job, told = make_job(folder, "pool"), []
    options = {**OPTIONS, "resources": {"nowhere": 1}}
    pool = TeacherPool(Pool(min=1, max=1), options, Teacher, (job, None), told.append, max_wait_minutes=0)
    message = r"no teachers for \d+ minutes \(0 of at least 1 there, each asks for .*nowhere\); a run waits 0 for them"

    def supervise() -> None:
        while True:
            pool.supervise()
            time.sleep(0.1)

    with pool, pytest.raises(RaydistillError, match=message):
        supervise()
    assert told[0]["note"].startswith("waiting for a teacher: 0 of at least 1 there")


@pytest.mark.slow
def test_a_directory_that_dies_is_replaced(folder, ray_cluster):
    """By itself, as for want of memory: teachers and workers go on, and what workers say is heard again."""
    with supervised(make_job(folder, "pool"), 1) as made:
        directory = made.pool.directory
        known = wait_for(lambda: ray.get(directory.teachers.remote()))
        ray.kill(directory, no_restart=False)
        assert wait_for(lambda: told_by(directory)) == known
        wait_for(lambda: directory.close.remote() and not made.pool.pool.max)
    assert made.error is None


def told_by(directory):
    try:
        return ray.get(directory.teachers.remote(), timeout=10)
    except ray.exceptions.RayError:
        return None


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found
