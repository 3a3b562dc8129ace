"""Promotion and rollback in a real registry: what moves, what is stored, and what happens when things go wrong."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.registered import LENIENT, NUM_ROWS, NUM_TEST, aliases, client
from kit.toy import write_toy_csv
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from raydistill.cli import main as cli
from raydistill.config.gate import Gate
from raydistill.config.loading import load_data
from raydistill.deploy.gate import judging, promotion
from raydistill.deploy.gate.promotion import promote, rollback
from raydistill.errors import ConfigError, ModelError, RaydistillError, TrackingError
from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.evidence import read_kept_predictions, read_seen
from raydistill.evaluate.rules import Retention
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.storage.locks import lock
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets, TextClassification
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.aliases import move_champion
from raydistill.tracking.registry.versions import list_versions, resolve_model_uri

pytestmark = pytest.mark.usefixtures("quick_timing")


def tags(place: Storage, version: int) -> dict[str, str]:
    return dict(client(place).get_model_version("toy", str(version)).tags)


def crown(place: Storage, version: int) -> None:
    """Make a version the first champion."""
    move_champion("toy", version, None, tracking_uri(place))


def judged(place: Storage, version: int | None = None, gate: Gate = LENIENT, **more: Any) -> dict[str, Any]:
    return promote("toy", version=version, gate=gate, storage=place.root, **more)


def failed(verdict: dict[str, Any]) -> list[str]:
    return [rule["name"] for rule in verdict["rules"] if rule["verdict"] == "failed"]


def test_retention_is_resampled_as_often_as_the_gate_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, task = np.random.default_rng(0), TextClassification(("a", "b"))
    targets = Targets(rng.integers(0, 2, 60), np.ones(60, bool))
    right = targets.values[:, None] == [0, 1]
    outputs = {"student": rng.normal(right, 1.0), "teacher": rng.normal(right, 0.5)}
    hashes, tasks = tuple(map(str, range(60))), dict.fromkeys(outputs, task)
    kept = Predictions(hashes, targets, np.arange(60), outputs, tasks)
    monkeypatch.setattr(judging, "read_kept_predictions", lambda run_id, uri: kept)
    found = {num: judging.find_retention("accuracy", num, "run", "uri") for num in (50, 1000)}
    for num, told in found.items():
        board = Scoreboard(tasks, outputs, targets, num_samples=num)
        assert told == Retention(**board.retention("teacher", "student", "accuracy"), num_rows=60)
    assert found[50] != found[1000]
    kept.outputs.pop("teacher")
    assert judging.find_retention("accuracy", 50, "run", "uri") is None


def test_a_whole_life(place: Storage) -> None:
    assert aliases(place) == {"challenger": 3}
    first = judged(place, 1)
    assert (first["verdict"], first["moved"], first["champion"], first["previous"]) == ("passed", True, None, None)
    assert {r["name"] for r in first["rules"] if r["verdict"] == "skipped"} == {"labels", "non_inferiority", "latency"}
    assert aliases(place) == {"challenger": 3, "champion": 1}
    check_stored(place, first, "passed")

    worse = judged(place, 2)
    assert (worse["verdict"], worse["moved"]) == ("refused", False)
    assert {"retention", "non_inferiority"} <= set(failed(worse))
    assert "version 1 stays the champion" in worse["sentence"]
    check_stored(place, worse, "failed")
    assert aliases(place) == {"challenger": 3, "champion": 1}

    third = judged(place)  # the alias challenger
    assert (third["version"], third["verdict"], third["previous"]) == (3, "passed", 1)
    assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
    check_paired(place, third)
    assert judged(place)["verdict"] == "unchanged"

    moved = rollback("toy", storage=place.root)
    assert (moved["was"], moved["now"], moved["previous"]) == (3, 1, None)
    assert aliases(place) == {"challenger": 3, "champion": 1}
    with pytest.raises(TrackingError, match="no version before its champion"):
        rollback("toy", storage=place.root)


def check_paired(place: Storage, verdict: dict[str, Any]) -> None:
    """Version 3 was measured on the test rows of its run, beside the champion."""
    summary = verdict["comparison"]
    run = client(place).get_model_version("toy", "3").run_id
    kept = read_kept_predictions(run, tracking_uri(place))
    assert kept is not None
    assert summary["data"]["num_rows"] == kept.targets.labeled.sum() == NUM_TEST
    # float32 here as in the run: the same predictions, so the same accuracy and retention as results.json has
    results = json.loads(Path(client(place).download_artifacts(run, "results.json")).read_text())
    accuracy = results["student"]["test"]["accuracy"]["value"]
    assert summary["models"]["challenger"]["metrics"]["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-6)
    assert verdict["retention"]["value"] == pytest.approx(results["retention"]["accuracy"], abs=1e-5)
    assert verdict["retention"]["num_rows"] == NUM_TEST
    (pair,) = summary["pairs"]
    champion = summary["models"]["champion"]["metrics"]["accuracy"]["value"]
    assert pair["differences"]["accuracy"]["value"] == pytest.approx(accuracy - champion, abs=1e-6)
    discordant = pair["mcnemar"]["only_second"] - pair["mcnemar"]["only_first"]
    assert discordant / NUM_TEST == pytest.approx(accuracy - champion, abs=1e-6)


def check_stored(place: Storage, verdict: dict[str, Any], retention: str) -> None:
    """The verdict lies with the version and as a run, and says what came of it."""
    version = str(verdict["version"])
    found = tags(place, verdict["version"])
    assert found["raydistill.gate"] == verdict["verdict"]
    assert json.loads(found["raydistill.gate_rules"])["retention"][1:] == [0.95, retention]
    run = client(place).get_run(found["raydistill.gate_run"])
    assert (run.info.run_id, run.info.status) == (verdict["run_id"], "FINISHED")
    kept = {name: run.data.tags[f"raydistill.{name}"] for name in ("kind", "model_version", "sentence")}
    assert kept == {"kind": "gate", "model_version": version, "sentence": verdict["sentence"]}
    assert run.data.metrics["gate/retention"] == pytest.approx(verdict["retention"]["value"])
    assert {file.path for file in client(place).list_artifacts(run.info.run_id)} == {"gate.json", "gate.html"}
    text, page = (Path(client(place).download_artifacts(verdict["run_id"], f"gate.{end}")) for end in ("json", "html"))
    own_id = {} if verdict["moved"] else {"run_id": None}  # it is known once the verdict is stored
    assert json.loads(text.read_text()) == verdict | own_id
    assert ("is the champion now" in page.read_text()) == verdict["moved"]


def test_a_dry_run_stores_and_moves_nothing(place: Storage) -> None:
    before = aliases(place), tags(place, 1)
    verdict = judged(place, 1, dry_run=True)
    assert (verdict["verdict"], verdict["moved"], verdict["run_id"]) == ("passed", False, None)
    assert (aliases(place), tags(place, 1)) == before


def test_force_needs_a_reason_and_keeps_it(place: Storage) -> None:
    with pytest.raises(ConfigError, match="--force needs --reason"):
        judged(place, 2, force=True)
    with pytest.raises(ConfigError, match="--reason is kept for a promotion by --force only"):
        judged(place, 2, reason="because")
    verdict = judged(place, 2, force=True, reason="the old one is withdrawn")
    assert (verdict["verdict"], verdict["moved"]) == ("forced", True)
    assert "retention" in failed(verdict)
    assert aliases(place)["champion"] == 2
    assert tags(place, 2)["raydistill.gate_reason"] == "the old one is withdrawn"
    assert "the old one is withdrawn" in verdict["sentence"]


def test_rows_that_leaked_into_training_are_found(place: Storage, life: Path, tmp_path: Path) -> None:
    """Half of the given rows are training rows of the run; the teacher has seen neither half on test."""
    run = client(place).get_model_version("toy", "1").run_id
    seen = read_seen(run, tracking_uri(place))
    assert seen is not None
    assert seen.table.num_rows == NUM_ROWS - NUM_TEST
    fresh = write_toy_csv(tmp_path / "fresh.csv", 60, seed=5)
    lines = fresh.read_text().splitlines()
    leaked = (life / "toy.csv").read_text().splitlines()[1:61]
    (tmp_path / "leaked.csv").write_text("\n".join([*lines, *leaked]) + "\n")
    clean = judged(place, 1, data=load_data(str(fresh)), dry_run=True)
    rule = next(rule for rule in clean["rules"] if rule["name"] == "leaked_rows")
    assert (rule["verdict"], rule["value"]) == ("passed", 0)
    assert clean["retention"]["num_rows"] == NUM_TEST < clean["comparison"]["data"]["num_rows"]
    dirty = judged(place, 1, data=load_data(str(tmp_path / "leaked.csv")), dry_run=True)
    rule = next(rule for rule in dirty["rules"] if rule["name"] == "leaked_rows")
    expected = sum(count for count in rule_counts(rule["why"]))
    assert rule["verdict"] == "failed"
    assert rule["value"] == expected
    assert 45 <= expected <= 60  # nine tenths of the run's rows are training or validation rows
    assert any("all its rows were taken" in note for note in dirty["notes"])


def rule_counts(why: str) -> Iterator[int]:
    """ "31 in train, 4 in validation" """
    yield from (int(part.split()[0]) for part in why.split(", "))


def test_rows_the_champion_was_trained_on_are_told(place: Storage, life: Path) -> None:
    crown(place, 1)
    verdict = judged(place, 3, data=load_data(str(life / "toy.csv")), dry_run=True)
    assert any("favours the champion" in note for note in verdict["notes"])


def relabel(place: Storage, version: int, names: list[str]) -> None:
    """Rename the classes in a copy of a version's files, and let the version point at it."""
    folder = Path(place.root) / f"relabelled-{version}"
    shutil.copytree(resolve_model_uri(f"models:/toy/{version}", place), folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    made = client(place).create_model_version("toy", str(folder))
    crown(place, int(made.version))


def test_other_labels_than_the_champions_are_refused(place: Storage) -> None:
    relabel(place, 1, ["film", "money", "tennis"])
    verdict = judged(place, 3)
    assert verdict["verdict"] == "refused"
    assert failed(verdict) == ["labels"]
    rule = verdict["rules"][0]
    assert rule["why"] == "it lacks tennis; it adds sport"
    assert set(verdict["comparison"]["models"]) == {"challenger"}


def test_labels_in_another_order_are_matched_by_name(place: Storage) -> None:
    """A champion whose output rows and names are both permuted is the same classifier."""
    relabel(place, 3, ["sport", "film", "money"])
    folder = Path(place.root) / "relabelled-3"
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][[2, 0, 1]].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    verdict = judged(place, 3, dry_run=True)
    (pair,) = verdict["comparison"]["pairs"]
    assert pair["agreement"] == 1.0
    assert pair["differences"]["accuracy"]["value"] == 0


def test_what_is_not_there_is_said(place: Storage, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no registered model 'tony'.*It has toy"):
        promote("tony", storage=place.root)
    with pytest.raises(TrackingError, match=r"toy has no version 9. Its versions: 3, 2, 1"):
        judged(place, 9)
    with pytest.raises(TrackingError, match="no champion, so there is nothing to roll back"):
        rollback("toy", storage=place.root)
    with pytest.raises(TrackingError, match="There is no MLflow store"):
        promote("toy", storage=str(tmp_path / "nowhere"))
    client(place).delete_model_version_tag("toy", "2", "raydistill.complete")
    with pytest.raises(TrackingError, match="was not registered to its end"):
        judged(place, 2)
    client(place).delete_registered_model_alias("toy", "challenger")
    with pytest.raises(TrackingError, match="toy has no alias challenger"):
        judged(place)


def test_data_that_is_gone_needs_other_rows(place: Storage) -> None:
    for key in place.list("data"):
        place.delete("data", key)
    with pytest.raises(ConfigError, match="Name labelled rows with --data"):
        judged(place, 1)


@pytest.mark.parametrize(
    ("act", "said", "left"),
    [
        (
            lambda place: client(place).delete_model_version("toy", "3"),
            "Version 3 of toy was deleted while it was judged, so nothing was moved",
            {"champion": 2, "previous": 1},
        ),
        (  # by another tool
            lambda place: client(place).set_registered_model_alias("toy", "champion", "1"),
            "it was version 2 and is now version 1",
            {"challenger": 3, "champion": 1, "previous": 1},
        ),
        (  # which does not wait for a measurement
            lambda place: rollback("toy", storage=place.root),
            "it was version 2 and is now version 1",
            {"challenger": 3, "champion": 1},
        ),
    ],
)
def test_what_changes_between_the_judgement_and_the_move_moves_nothing(
    place: Storage, monkeypatch: pytest.MonkeyPatch, act: Callable[[Storage], object], said: str, left: dict[str, int]
) -> None:
    plain = promotion.measure

    def measure(*arguments: Any) -> Any:
        found = plain(*arguments)
        act(place)
        return found

    crown(place, 1)
    move_champion("toy", 2, 1, tracking_uri(place))
    monkeypatch.setattr(promotion, "measure", measure)
    with pytest.raises(TrackingError, match=said):
        judged(place, 3)
    assert aliases(place) == left
    experiments = [one.experiment_id for one in client(place).search_experiments()]
    assert client(place).search_runs(experiments, "tags.`raydistill.kind` = 'gate'") == []  # nothing has happened


def test_two_promotions_at_once_follow_each_other(place: Storage) -> None:
    """The second waits, and judges against the champion that the first has made."""
    crown(place, 2)
    results: dict[int, Any] = {}
    waited = threading.Event()

    def work(version: int) -> None:
        try:
            results[version] = judged(
                place, version, progress=lambda entry: waited.set() if entry["phase"] == "wait" else None
            )
        except RaydistillError as error:
            results[version] = error

    with lock(place, "promotions", "toy"):
        threads = [threading.Thread(target=work, args=(version,)) for version in (1, 3)]
        for thread in threads:
            thread.start()
        assert waited.wait(60)
        assert aliases(place)["champion"] == 2
    for thread in threads:
        thread.join(120)
    assert {found["verdict"] for found in results.values()} == {"passed"}
    against = {version: found["champion"] for version, found in results.items()}
    first = next(version for version, champion in against.items() if champion == 2)
    second = 4 - first
    assert against[second] == first
    assert (aliases(place)["champion"], aliases(place)["previous"]) == (second, first)


def test_a_registry_that_never_answers_is_given_up(
    place: Storage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        for command in (["promote", "toy"], ["rollback", "toy"], ["registry", "toy"]):
            assert cli.execute([*command, "--storage", place.root]) == 1
            said = capfd.readouterr().err
            assert "no answer within 1 s" in said
            assert "MLFLOW_TRACKING_URI" in said
            assert "Traceback" not in said


class Killed(BaseException):
    """Stands for a process that ends here: nothing in the product catches it."""


CALLS = ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias", "create_run")
CALLS += ("log_batch", "log_artifacts", "set_terminated")


def kill_after(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let every call of the registry but the first ``number`` end the process; the names of those that were made."""
    made: list[str] = []

    def counted(name: str) -> Any:
        plain = getattr(MlflowClient, name)

        def call(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
            if len(made) == number:
                raise Killed
            made.append(name)
            return plain(self, *arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(MlflowClient, name, counted(name))
    return made


def calls_of(work: Callable[[], object]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        made = kill_after(patch, -1)
        work()
    return len(made)


def reset(place: Storage, champion: int, previous: int | None, replaced: dict[int, str]) -> None:
    one = client(place)
    one.set_registered_model_alias("toy", "champion", str(champion))
    if previous is None:
        one.delete_registered_model_alias("toy", "previous")
    else:
        one.set_registered_model_alias("toy", "previous", str(previous))
    for version, tag in replaced.items():
        one.set_model_version_tag("toy", str(version), "raydistill.replaced", tag)


def test_killed_between_any_two_calls_a_promotion_leaves_a_champion_and_can_be_repeated(
    place: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tracking_uri(place)
    start = {"champion": 2, "previous": 1, "replaced": {1: "", 2: "1", 3: ""}}
    reset(place, **start)  # type: ignore[arg-type]
    total = calls_of(lambda: move_champion("toy", 3, 2, uri))
    assert total == 4
    for number in range(total):
        reset(place, **start)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, number)
            with pytest.raises(Killed):
                move_champion("toy", 3, 2, uri)
        found = aliases(place)
        assert found["champion"] == (3 if number == total - 1 else 2)
        assert found["previous"] in (1, 2)
        if found["champion"] == 2:  # rolling back what was never moved leaves the champion where it is
            if found["previous"] == 2:
                assert rollback("toy", storage=place.root)["now"] == 2
                assert aliases(place) == {"challenger": 3, "champion": 2, "previous": 1}
            move_champion("toy", 3, 2, uri)
        assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 2}
        assert rollback("toy", storage=place.root)["now"] == 2
        assert aliases(place) == {"challenger": 3, "champion": 2, "previous": 1}


def test_killed_between_any_two_calls_a_rollback_leaves_a_champion_and_can_be_repeated(place: Storage) -> None:
    start = {"champion": 3, "previous": 2, "replaced": {1: "", 2: "1", 3: "2"}}
    reset(place, **start)  # type: ignore[arg-type]
    total = calls_of(lambda: rollback("toy", storage=place.root))
    assert total == 4
    for number in range(total):
        reset(place, **start)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, number)
            with pytest.raises(Killed):
                rollback("toy", storage=place.root)
        assert aliases(place)["champion"] == (3 if number == 0 else 2)
        if number < 2:
            rollback("toy", storage=place.root)
        assert aliases(place) == {"challenger": 3, "champion": 2, "previous": 1}


def test_rollback_to_a_deleted_version_says_so(place: Storage) -> None:
    uri = tracking_uri(place)
    move_champion("toy", 1, None, uri)
    move_champion("toy", 3, 1, uri)
    client(place).delete_model_version("toy", "1")  # takes its alias with it
    with pytest.raises(TrackingError, match=r"Version 1 of toy, which the champion \(version 3\) replaced, has been"):
        rollback("toy", storage=place.root)
    assert aliases(place)["champion"] == 3


def test_a_deleted_champion_gives_way_to_previous(place: Storage) -> None:
    crown(place, 1)
    move_champion("toy", 3, 1, tracking_uri(place))
    client(place).delete_model_version("toy", "3")  # takes its aliases with it
    assert aliases(place) == {"previous": 1}
    assert rollback("toy", storage=place.root)["was"] is None
    assert aliases(place) == {"champion": 1}


def test_rollbacks_end_where_promotions_went_in_a_circle(place: Storage) -> None:
    uri = tracking_uri(place)
    crown(place, 1)
    for version, old in ((2, 1), (3, 2), (1, 3)):
        move_champion("toy", version, old, uri)
    assert [rollback("toy", storage=place.root)["now"] for _ in range(3)] == [3, 2, 1]
    with pytest.raises(TrackingError, match="no version before its champion"):
        rollback("toy", storage=place.root)


def test_a_champion_that_cannot_be_opened_is_named_and_gives_way_to_force(place: Storage) -> None:
    relabel(place, 1, ["film", "money", "sport"])
    (Path(place.root) / "relabelled-1" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"The champion, version 4 of toy, cannot be used: .*config.json"):
        judged(place, 3)
    verdict = judged(place, 3, force=True, reason="the champion is broken")
    assert verdict["moved"]
    assert any("cannot be used" in note for note in verdict["notes"])
    assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 4}


def test_versions_and_tags_of_other_tools_are_taken_as_they_are(
    place: Storage, capfd: pytest.CaptureFixture[str], life: Path
) -> None:
    """A version registered by hand has no run, figures or evidence; a tag may be any text."""
    one = client(place)
    one.set_model_version_tag("toy", "1", "validation_status", "approved")
    made = one.create_model_version("toy", str(resolve_model_uri("models:/toy/1", place, Path(place.root))))
    with pytest.raises(ConfigError, match="comes from no run of the storage"):
        judged(place, int(made.version))
    verdict = judged(place, int(made.version), data=load_data(str(life / "toy.csv")))
    assert failed(verdict) == ["leaked_rows", "retention"]
    assert tags(place, int(made.version))["raydistill.gate"] == "refused"
    assert one.get_run(verdict["run_id"]).data.tags["raydistill.model_version"] == str(made.version)
    assert cli.execute(["registry", "toy", "--json", "--storage", place.root]) == 0
    listed = json.loads(capfd.readouterr().out)["versions"]
    assert "validation_status" not in listed[3]["figures"]
    assert listed[0]["figures"] == {}


def test_commands_exit_codes_and_json(place: Storage, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text(json.dumps(LENIENT.model_dump()))
    common = ["--storage", place.root]
    assert cli.execute(["promote", "toy", "--version", "1", "--gate", str(gate), *common]) == 0
    shown = capfd.readouterr().out
    assert "retention" in shown
    assert "Version 1 of toy passes every rule. It is the champion now, the first one." in " ".join(shown.split())
    assert cli.execute(["promote", "toy", "--version", "2", "--gate", str(gate), "--json", *common]) == 3
    verdict = json.loads(capfd.readouterr().out)
    assert verdict["verdict"] == "refused"
    assert cli.execute(["promote", "toy", "--gate", str(tmp_path / "no.yaml"), *common]) == 2
    assert cli.execute(["promote", "toy", "--set", "data.max_length=9", *common]) == 2
    assert "--set data.max_length=9 says how to read --data" in capfd.readouterr().err
    assert cli.execute(["registry", "toy", *common]) == 0
    shown = capfd.readouterr().out
    assert "champion" in shown
    assert "refused" in shown
    assert cli.execute(["registry", "toy", "--json", *common]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [version["version"] for version in listed["versions"]] == [3, 2, 1]
    assert listed["versions"][1]["gate"]["verdict"] == "refused"
    assert listed["versions"][2]["aliases"] == ["champion"]
    assert 0 < listed["versions"][2]["figures"]["test/accuracy"] <= 1
    assert cli.execute(["registry", "--json", *common]) == 0
    assert json.loads(capfd.readouterr().out) == {"models": ["toy"]}
    assert cli.execute(["rollback", "toy", *common]) == 1
    assert len(list_versions("toy", tracking_uri(place))) == 3
