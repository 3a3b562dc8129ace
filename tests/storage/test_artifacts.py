"""Artefacts are whole or not there, on a local disk and on S3, whoever is killed at whatever moment."""

from __future__ import annotations

import json
import pickle
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.processes import KEY, damage, fill, kill, say_go, start, wait_for

from raydistill.errors import ArtifactError, RaydistillError
from raydistill.storage import manifest as manifest_module
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import collect_garbage, list_artifacts
from raydistill.storage.manifest import FORMAT_VERSION, FileInfo, file_digest, folder_digest, recipe_key
from raydistill.storage.storage import Storage

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def reordered(value: object) -> object:
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_key_ignores_order_and_survives_a_json_round_trip(recipe: dict[str, object]) -> None:
    key = recipe_key(recipe)
    assert len(key) == 20
    assert set(key) <= set("0123456789abcdef")
    assert recipe_key(reordered(recipe)) == key  # type: ignore[arg-type]
    assert recipe_key(json.loads(json.dumps(recipe))) == key


def test_key_is_stable_and_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"epochs": 3, "data": {"digest": "ab", "split": (0.1, 0.2)}, "dtype": "float32"}
    assert recipe_key(recipe) == "2bb9fdb10e4e27c55505"
    variants = [
        {**recipe, "epochs": 4},
        {**recipe, "epochs": "3"},
        {**recipe, "dtype": None},
        {**recipe, "more": None},
        {**recipe, "data": {"digest": "ab", "split": (0.2, 0.1)}},
    ]
    assert len({recipe_key(variant) for variant in [recipe, *variants]}) == 6
    monkeypatch.setattr(manifest_module, "FORMAT_VERSION", FORMAT_VERSION + 1)
    assert recipe_key(recipe) != "2bb9fdb10e4e27c55505"
    with pytest.raises(ValueError):
        recipe_key({"rate": float("nan")})
    with pytest.raises(TypeError):
        recipe_key({"path": Path("x")})


def test_folder_digest_sees_names_and_content_but_not_times(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / uuid.uuid4().hex
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder_digest(folder)

    base = digest(a="1", s__b="2")
    assert digest(s__b="2", a="1") == base
    assert len({base, digest(a="2", s__b="1"), digest(a="1", s__c="2"), digest(a="12", s__b=""), digest(a="1")}) == 5


def test_write_then_read_everywhere(storage: Storage) -> None:
    artifact = Artifact(storage, "data", KEY)
    assert not artifact.exists()
    assert artifact.names() == []
    fill(artifact, parents={"source": "d" * 64})
    assert artifact.exists()
    assert artifact.names() == ["a.txt", "sub/b.bin"]
    manifest = artifact.manifest()
    assert manifest.files["sub/b.bin"].bytes == 256
    assert manifest.bytes == 263
    assert (manifest.parents, manifest.recipe) == ({"source": "d" * 64}, {"text": "content"})
    assert manifest.format == FORMAT_VERSION
    folder = artifact.local(verify=True)
    assert (folder / "a.txt").read_text() == "content"
    assert manifest.files["a.txt"].sha256 == file_digest(folder / "a.txt")
    (folder / "manifest.json").unlink(missing_ok=True)
    assert folder_digest(folder) == manifest.digest
    artifact.delete()
    artifact.delete()
    assert not artifact.exists()
    assert artifact.names() == []


def test_equal_content_has_an_equal_digest_and_the_first_commit_wins(storage: Storage) -> None:
    first, twin, other = (Artifact(storage, kind, KEY) for kind in ("data", "tokens", "teacher"))
    assert fill(first).digest == fill(twin).digest != fill(other, "another").digest
    created = first.manifest()
    fill(first, "made again, differently")
    assert first.manifest() == created
    assert (first.local(verify=True) / "a.txt").read_text() == "content"


def test_commits_race_inside_the_body(storage: Storage) -> None:
    artifact = Artifact(storage, "data", KEY, {})
    with artifact.write() as folder:
        (folder / "a.txt").write_text("slow")
        fill(Artifact(storage, "data", KEY), "quick")
    assert (artifact.local(verify=True) / "a.txt").read_text() == "quick"


def test_an_exception_inside_write_leaves_nothing(storage: Storage) -> None:
    artifact = Artifact(storage, "data", KEY, {})
    seen: list[Path] = []

    def fail() -> None:
        with artifact.write() as folder:
            seen.append(folder)
            (folder / "a.txt").write_text("half")
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()
    assert not seen[0].exists()
    assert not artifact.exists()
    assert storage.files() == {}


def test_leftovers_without_manifest_are_replaced(storage: Storage) -> None:
    artifact = Artifact(storage, "data", KEY)
    storage.write_bytes(b"of a killed process", "data", KEY, "old.txt")
    assert not artifact.exists()
    fill(artifact)
    assert artifact.names() == ["a.txt", "sub/b.bin"]


def test_put_then_seal(storage: Storage, tmp_path: Path) -> None:
    artifact = Artifact(storage, "signals", KEY, {"signal": "logits"}, {"teacher": "t"})
    files: dict[str, FileInfo] = {}
    for index in range(3):
        shard = tmp_path / "shard"
        shard.write_bytes(bytes([index]) * 1000)
        files[f"shard-{index}.arrow"] = artifact.put(shard, f"shard-{index}.arrow")
    assert artifact.names() == sorted(files)
    assert not artifact.exists()
    with pytest.raises(ArtifactError, match=r"shard-9.arrow"):
        artifact.seal({**files, "shard-9.arrow": files["shard-0.arrow"]})
    artifact.seal(files)
    replace(artifact, recipe={"signal": "another"}).seal({})
    assert artifact.manifest().recipe == {"signal": "logits"}
    assert artifact.manifest().parents == {"teacher": "t"}
    assert (artifact.local(verify=True) / "shard-2.arrow").read_bytes() == b"\2" * 1000


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damage_is_found_and_named(local: Storage, how: str) -> None:
    artifact = fill(Artifact(local, "data", KEY))
    damage(Path(local.path("data", KEY, "sub", "b.bin")), how)
    if how == "flipped":
        assert artifact.local()
    with pytest.raises(ArtifactError, match=rf"sub/b\.bin.*raydistill cache rm data/{KEY}"):
        artifact.local(verify=how == "flipped")


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damage_on_s3_is_found_at_download(remote: Storage, tmp_path: Path, how: str) -> None:
    artifact = fill(Artifact(remote, "data", KEY))
    copy = tmp_path / "copy"
    remote.download(copy, "data", KEY, "sub", "b.bin")
    damage(copy, how)
    remote.delete("data", KEY, "sub", "b.bin")
    if how != "missing":
        remote.upload(copy, "data", KEY, "sub", "b.bin")
    with pytest.raises(ArtifactError, match=rf"sub/b\.bin.*raydistill cache rm data/{KEY}"):
        artifact.local()
    assert [path.name for path in (tmp_path / "node-cache").iterdir()] == ["locks"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": {"a": 1}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_with_a_way_out(local: Storage, content: bytes) -> None:
    fill(Artifact(local, "data", KEY))
    local.write_bytes(content, "data", KEY, "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json.*damaged|damaged.*manifest\.json"):
        Artifact(local, "data", KEY).local()


def test_a_changed_manifest_does_not_fit_its_digest(local: Storage) -> None:
    fill(Artifact(local, "data", KEY))
    data = local.read_json("data", KEY, "manifest.json")
    data["files"]["a.txt"]["sha256"] = "0" * 64
    local.write_json(data, "data", KEY, "manifest.json")
    with pytest.raises(ArtifactError, match="digest does not fit"):
        Artifact(local, "data", KEY).manifest()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "/abs", "a\\b", ".hidden", "a\0b", "a b"])
def test_kinds_and_keys_cannot_leave_the_storage(storage: Storage, name: str) -> None:
    for kind, key in ((name, KEY), ("data", name)):
        with pytest.raises(ArtifactError, match="not a kind or key"):
            Artifact(storage, kind, key)


WRITE = """
    with Artifact(Storage(sys.argv[1]), "data", sys.argv[2], {}).write() as folder:
        for index in range(20):
            (folder / f"{index}.bin").write_bytes(os.urandom(20_000))
        print("ready", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("place", ["local", "remote"])
def test_two_processes_write_the_same_artefact_at_once(request: pytest.FixtureRequest, place: str) -> None:
    storage: Storage = request.getfixturevalue(place)
    processes = [start(WRITE, storage.url, KEY) for _ in range(2)]
    for process in processes:
        wait_for(process)
    for process in processes:
        say_go(process)
    assert [process.wait(60) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    artifact = Artifact(storage, "data", KEY)
    assert len(list(artifact.local(verify=True).glob("*.bin"))) == 20
    assert storage.list(".staging") == []


def test_a_process_killed_inside_write_leaves_nothing_believed(local: Storage) -> None:
    process = start(WRITE, local.url, KEY)
    wait_for(process)
    kill(process)
    assert not Artifact(local, "data", KEY).exists()
    assert len(local.list(".staging")) == 1
    assert collect_garbage(local) == []
    assert [row.kind for row in collect_garbage(local, older_than_seconds=0)] == [".staging"]
    assert local.list(".staging") == []
    fill(Artifact(local, "data", KEY))
    assert Artifact(local, "data", KEY).local(verify=True)


COMMIT = """
    storage = Storage(sys.argv[1])
    for index in range(1000):
        with Artifact(storage, "data", f"{index:020d}", {}).write() as folder:
            for name in "abcde":
                (folder / name).write_bytes(os.urandom(100_000))
        if index == 0:
            print("ready", flush=True)
"""


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.parametrize("delay", [0.05, 0.12, 0.2])
def test_every_artefact_of_a_killed_process_is_whole_or_not_there(
    request: pytest.FixtureRequest, place: str, delay: float
) -> None:
    storage: Storage = request.getfixturevalue(place)
    process = start(COMMIT, storage.url)
    wait_for(process)
    time.sleep(delay)
    kill(process)
    rows = list_artifacts(storage)
    assert len([row for row in rows if not row.sealed]) <= 1
    whole = [row for row in rows if row.sealed]
    assert whole
    assert all(len(list(Artifact(storage, "data", row.key).local(verify=True).iterdir())) >= 5 for row in whole)


def test_every_error_is_one_message(local: Storage) -> None:
    with pytest.raises(RaydistillError) as caught:
        Artifact(local, "data", KEY).local()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert f"data/{KEY}" in str(caught.value)
