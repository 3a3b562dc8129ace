"""Pushing to a hub, against a stand-in of its API: what arrives, what never leaves, and errors without the token."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from kit.hub_api import TOKEN, Hub, Repo, serve_hub
from kit.servers import make_config
from kit.tiny import save_tiny

from raydistill.deploy import hub as pushing
from raydistill.deploy.hub import PushError, push_model
from raydistill.errors import ConfigError, ModelError
from raydistill.storage.storage import Storage
from raydistill.tracking.lineage import credential_line
from raydistill.tracking.registry.students import register_student, write_model
from raydistill.tracking.runs import start_run

CARD = b"---\nlibrary_name: transformers\n---\n\n# tiny\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has LFS only
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("hf") / "student", "bert", num_layers=1)
    (folder / "README.md").write_bytes(CARD)
    return folder


def push(model: Path | str, repo: str = "me/tiny", **options: Any) -> dict[str, Any]:
    return push_model(str(model), repo, **({"storage": "raydistill-storage"} | options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_arrives_is_the_folder_byte_by_byte_in_one_commit(hub: Hub, student: Path) -> None:
    pushed = push(student)
    repo = hub.repos["me/tiny"]
    assert repo.branches == {"main": contents(student)}
    assert len(repo.commits) == 1
    assert repo.private
    assert (pushed["repo"], pushed["private"], pushed["revision"]) == ("me/tiny", True, "main")
    assert pushed["url"] == f"{hub.url}/me/tiny/commit/{pushed['commit']}"
    assert {file["name"]: file["bytes"] for file in pushed["files"]} == {
        n: len(b) for n, b in contents(student).items()
    }
    assert (pushed["left_out"], pushed["warnings"]) == ([], [])
    assert [request for request in hub.requests if request.startswith("PUT")] == [f"PUT /lfs/{next(iter(hub.blobs))}"]


def test_the_same_again_makes_no_commit_and_a_change_makes_one(hub: Hub, student: Path, tmp_path: Path) -> None:
    first, again = push(student), push(student)
    assert again["commit"] == first["commit"]
    changed = Path(shutil.copytree(student, tmp_path / "changed"))
    (changed / "README.md").write_bytes(CARD + b"more\n")
    assert push(changed, message="second")["commit"] != first["commit"]
    assert hub.repos["me/tiny"].commits[1:] == ["second"]
    assert hub.repos["me/tiny"].branches["main"] == contents(changed)


def test_a_name_alone_is_in_the_users_own_namespace(hub: Hub, student: Path) -> None:
    assert push(student, "tiny")["repo"] == "me/tiny"


def test_a_branch_is_made_where_it_is_missing(hub: Hub, student: Path) -> None:
    for _ in range(2):
        assert push(student, revision="v2/next")["revision"] == "v2/next"
    assert hub.repos["me/tiny"].branches == {"main": {}, "v2/next": contents(student)}


@pytest.mark.parametrize(("wanted", "private"), [(None, True), (True, True), (False, False)])
def test_a_repository_is_private_unless_public_is_asked_for_and_stays_as_it_is(
    hub: Hub, student: Path, wanted: bool | None, private: bool
) -> None:
    assert push(student, private=wanted)["private"] is private
    assert hub.repos["me/tiny"].private is private
    hub.requests.clear()
    with pytest.raises(PushError, match=f"is {pushing.visibility(private)}, but --{pushing.visibility(not private)}"):
        push(student, private=not private)
    assert not any("upload" in request or "commit" in request for request in hub.requests)
    assert push(student)["private"] is private


def test_of_a_registered_version_the_hugging_face_files_go_and_what_mlflow_needs_stays(
    hub: Hub, student: Path, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path / "storage"))
    ref = start_run(make_config(), storage, "key")
    card = CARD.decode() + "Of this run.\n"
    register_student(ref, "tiny", student, {}, run_key="key", card=card)
    for model in ("models:/tiny@challenger", "models:/tiny/1", f"runs:/{ref.run_id}/student"):
        pushed = push(model, storage=storage.url)
        sent = hub.repos["me/tiny"].branches["main"]
        assert sent == contents(student) | {"README.md": card.encode()}
        assert set(pushed["left_out"]) >= {"MLmodel", "code/", "components/", "conda.yaml", "requirements.txt"}
        assert pushed["warnings"] == []


def test_an_exported_folder_goes_and_pickles_never_do(hub: Hub, student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student, tmp_path / "onnx"))
    (folder / "model.safetensors").rename(folder / "model.onnx")
    for name in (
        "model.onnx.data",
        "ort_config.json",
        "export.json",
        "pytorch_model.bin",
        "optimizer.pt",
        "a.pkl",
        ".env",
        "rows.csv",
    ):
        (folder / name).write_bytes(name.encode())
    (folder / "code").mkdir()
    (folder / "evil.py").write_text("print('hi')")
    pushed = push(folder)
    sent = {"model.onnx", "model.onnx.data", "ort_config.json", "export.json", "config.json", "README.md"}
    sent |= {"tokenizer.json", "tokenizer_config.json"}
    assert hub.repos["me/tiny"].branches["main"] == {n: b for n, b in contents(folder).items() if n in sent}
    assert pushed["left_out"] == [".env", "a.pkl", "code/", "evil.py", "optimizer.pt", "pytorch_model.bin", "rows.csv"]


def test_python_files_go_where_the_config_needs_them(hub: Hub, student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student, tmp_path / "own"))
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("class OwnConfig: ...")
    push(folder)
    assert "own.py" in hub.repos["me/tiny"].branches["main"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"_name_or_path": "https://ann:hunter2@example.org/model"}'),
        ("export.json", '{"source": "s3://bucket/x?X-Amz-Signature=0123456789abcdef"}'),
        ("README.md", f"Download it with {TOKEN}."),
        ("README.md", "AKIA" + "2B" * 8),
        ("README.md", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("README.md", f"Set it to glpat-{'a1' * 10}."),
        ("tokenizer_config.json", '{"bos_token": "<s>", "api_key": "0123456789abcdef"}'),
    ],
)
def test_a_credential_is_never_sent(hub: Hub, student: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = Path(shutil.copytree(student, tmp_path / "spoiled"))
    (folder / name).write_text("\n" + content)
    with pytest.raises(ConfigError, match=rf"{name} names a credential in line 2.*Take it out") as caught:
        push(folder)
    assert not any(secret in str(caught.value) for secret in (TOKEN, "hunter2", "0123456789", "2B2B"))
    assert hub.requests == []


def test_a_link_out_of_the_folder_is_not_followed(hub: Hub, student: Path, tmp_path: Path) -> None:
    (key := tmp_path / "id_ed25519").write_text("mine")
    folder = Path(shutil.copytree(student, tmp_path / "linked"))
    (folder / "LICENSE").symlink_to(key)
    with pytest.raises(ConfigError, match=r"LICENSE is a link that leads to .*id_ed25519, out of the folder"):
        push(folder)
    assert hub.requests == []
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("config.json")
    snapshot = tmp_path / "models--ann--toy" / "snapshots" / "abc"
    (blobs := snapshot.parents[1] / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(student.iterdir())):  # as the hub's own cache has it
        shutil.copyfile(path, blobs / str(index))
        (snapshot / path.name).symlink_to(f"../../blobs/{index}")
    for good in (folder, snapshot):
        assert push(good)["files"]


def test_what_looks_like_a_credential_and_is_none_goes() -> None:
    for text in (
        '"bos_token": "<s>"',
        "https://***@host/x",
        "https://ann:***@host",
        "hf_quantizer",
        "ABAKIA" + "A" * 20,
        "ssh://git@host/x",
        "risk-adjusted-student-of-a-teacher",
        "-----BEGIN PUBLIC KEY-----",
    ):
        assert credential_line(text.encode()) is None


def test_weights_of_an_earlier_model_are_deleted_in_the_same_commit(hub: Hub, student: Path, tmp_path: Path) -> None:
    hub.repos["me/tiny"] = Repo(True)
    earlier = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.onnx", "model.onnx.data")
    kept = ("notes.txt", "onnx/model.onnx", "LICENSE")
    hub.repos["me/tiny"].branches["main"] = dict.fromkeys((*earlier, "export.json", *kept), b"old")
    pushed = push(student)
    assert pushed["deleted"] == sorted([*earlier, "export.json"])
    assert hub.repos["me/tiny"].branches["main"] == contents(student) | dict.fromkeys(kept, b"old")
    assert len(hub.repos["me/tiny"].commits) == 1
    assert push(student)["deleted"] == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}"}, "no model.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "only pickled weights"),
    ],
)
def test_folders_that_cannot_be_meant(hub: Hub, tmp_path: Path, content: dict[str, str], text: str) -> None:
    (tmp_path / "f").mkdir()
    for name, inside in content.items():
        (tmp_path / "f" / name).write_text(inside)
    with pytest.raises(ModelError, match=text):
        push(tmp_path / "f")
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["a/b/c", "a b", "https://huggingface.co/me/x", "-x", "me/x.git", "", "a..b"])
def test_names_that_no_repository_can_have(hub: Hub, student: Path, repo: str) -> None:
    with pytest.raises(ConfigError, match=r"no name of a hub repository.*OWNER/NAME"):
        push(student, repo)
    assert hub.requests == []


def test_models_that_are_nowhere(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder here.*A registered model is called models:/NAME@ALIAS"):
        push("bert-base")
    assert not any("create" in request for request in hub.requests)
    with pytest.raises(ConfigError, match="does not exist"):
        push(tmp_path / "nothing")


SPOILED = {"X-Error-Message": f"denied for {TOKEN}"}


@pytest.mark.parametrize(
    ("request_", "status", "body", "text"),
    [
        ("POST /api/repos/create", 401, {"error": f"bad token {TOKEN}"}, "does not accept the token.*write access"),
        ("POST /api/repos/create", 403, {"error": f"no rights, {TOKEN}"}, "403: .*no rights.*another owner's name"),
        ("POST /api/repos/create", 429, {"error": "slow down"}, "429.*slow down.*again, later"),
        ("POST /api/repos/create", 503, {"error": f"Bearer {TOKEN}"}, "503.*again, later"),
        ("preupload", 403, {"error": "Private repository storage limit reached"}, "403.*storage limit.*free storage"),
        ("preupload", 404, {"error": "Repository not found"}, "404.*Check the repository's name, --revision"),
        ("PUT /lfs", 403, f"<Error>{TOKEN}</Error>", "403"),
        ("info/lfs", 413, {"error": "too large"}, "413.*too large.*Mend"),
        ("/commit/", 400, {"error": f"Invalid metadata {TOKEN}"}, "400: .*Invalid metadata.*Mend what it says"),
        ("/commit/", 412, {"error": "A commit has happened since"}, "412.*Run the command again"),
        ("validate-yaml", 400, {"errors": [{"message": f"license {TOKEN}"}], "warnings": []}, "Invalid metadata"),
        ("POST /api/repos/create", 200, {"unexpected": TOKEN}, "did not take me/tiny"),
        ("POST /api/repos/create", 200, f"<html>{TOKEN}", "did not take me/tiny.*HF_ENDPOINT"),
    ],
)
def test_errors_name_the_way_out_and_never_the_token(
    hub: Hub, student: Path, request_: str, status: int, body: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults[request_] = (status, SPOILED, body)
    with pytest.raises(PushError, match=text) as caught:
        push(student)
    error = caught.value
    assert TOKEN not in str(error)
    assert hub.url in str(error)
    assert (error.__cause__, error.__context__) == (None, None)
    assert TOKEN not in caplog.text


def test_another_owners_name_is_refused_by_the_hub(hub: Hub, student: Path) -> None:
    with pytest.raises(PushError, match=r'403: .*namespace "you".*write access to that owner\'s models'):
        push(student, "you/tiny")


def test_warnings_and_log_lines_of_the_hub_lose_the_token(hub: Hub, student: Path) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    hub.warnings.append(f"empty metadata, says {TOKEN}")
    hub.faults["GET /api/models/me/tiny$"] = (
        200,
        {"X-HF-Warning": f"topic-{os.getpid()}; {TOKEN} is old"},
        {"id": "me/tiny", "private": True, "sha": "0" * 40},
    )
    try:
        pushed = push(student)
    finally:
        logger.removeHandler(handler)
    assert "is old" in " ".join(lines)
    assert TOKEN not in " ".join(lines)
    assert "empty metadata, says ***" in pushed["warnings"][0]


def test_without_a_token_nothing_is_asked(hub: Hub, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with pytest.raises(PushError, match=r"no token for the hub.*HF_TOKEN.*hf auth login"):
        push(student)
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_ä broken")
    with pytest.raises(PushError, match="did not take me/tiny") as caught:
        push(student)
    assert "broken" not in str(caught.value)
    assert hub.repos == {}


def test_the_hubs_own_login_is_used(hub: Hub, student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    (tmp_path / "no-token").write_text(TOKEN)
    assert push(student)["repo"] == "me/tiny"


def test_a_hub_that_is_away_and_offline_mode(hub: Hub, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(PushError, match=r"http://\*\*\*@127.0.0.1:9 did not take me/tiny: .*HF_ENDPOINT") as caught:
        push(student)
    assert "secret" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="that HF_HUB_OFFLINE is not set"):
        push(student)


def test_a_hub_without_xet_storage_says_so(hub: Hub, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(PushError, match="HF_HUB_DISABLE_XET=1"):
        push(student)
    assert hub.repos["me/tiny"].commits == []


def command(hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "RAYDISTILL_DEBUG": "1"}
    line = [sys.executable, "-c", "from raydistill.cli.main import main; main()", "push", *arguments]
    return subprocess.run(line, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)


def test_the_command(hub: Hub, tmp_path: Path, student: Path) -> None:
    write_model(student, tmp_path / "model")
    done = command(hub, str(tmp_path / "model"), "tiny", "--public", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["private"] is False
    shown = command(hub, str(tmp_path / "model"), "me/tiny")
    assert "Not sent: MLmodel, code/" in shown.stdout
    assert f"Pushed to me/tiny (public), main: {hub.url}/me/tiny/commit/" in shown.stdout
    assert command(hub, str(student), "a/b/c").returncode == 2
    hub.faults["."] = (401, SPOILED, {"error": f"Bearer {TOKEN}"})
    refused = command(hub, str(student), "me/tiny")
    assert refused.returncode == 1
    assert "does not accept the token" in refused.stderr
    assert "Traceback" not in refused.stderr
    for run in (done, shown, refused):
        assert TOKEN not in run.stdout + run.stderr
