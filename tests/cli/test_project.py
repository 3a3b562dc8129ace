"""What travels with a job: by git or by walking, never secrets, data, weights, caches; limits; named files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from raydistill.cli.submit import project as packing
from raydistill.cli.submit.project import MAX_FILE_BYTES, open_project, select, staged
from raydistill.errors import ConfigError

CODE = (
    *("train.py", "configs/run.yaml", "package/__init__.py", "package/page.html", "notes.md", "data.json"),
    *("tokenizer.json", "secretary.txt", "special_tokens_map.json", "max-token-length.txt", "api_token.py"),
)
SECRETS = (
    *(".env", ".env.local", "prod.env", "id_rsa", "deploy/id_ed25519.pub", "server.pem", "tls.KEY", "credentials.json"),
    *("CREDENTIALS", ".aws/config", "secrets.yaml", "keys/secret/words.txt", "gcp-service-account-prod.json", ".netrc"),
    *("client_secret.json", "db_password.txt", "hf-token", "deploy/api-token.txt", "my-secrets.toml", "smtp_passwd"),
    *("auth_token", "kubeconfig.yaml", "terraform.tfstate", "aws_credentials.csv"),
)
HEAVY = (
    *("train.csv", "rows.parquet", "rows.jsonl.gz", "model.safetensors", "pytorch_model.bin", "student.ONNX"),
    *("weights.pt", "mlflow.db", "mlflow.db-wal", "archive.tar.gz", "x.npy", "x.pickle"),
)
CACHED = ("package/__pycache__/a.pyc", "raydistill-storage/runs/x/results.json", "mlruns/0/meta.yaml")
HIDDEN = (".ruff_cache/x", "package/.hidden.py", ".github/workflows/ci.yml")


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "project").mkdir()
    monkeypatch.chdir(folder)
    return folder.resolve()


@pytest.mark.parametrize("has_git", [True, False])
def test_code_travels_and_nothing_else(root: Path, has_git: bool) -> None:
    fill(root, *CODE, *SECRETS, *HEAVY, *CACHED, *HIDDEN)
    fill(root, "env3/pyvenv.cfg", "env3/lib/module.py")
    if has_git:
        git(root, "init", "-q")
        git(root, "add", "-f", ".")  # tracked or not: a secret in git is a secret
    selection = select(open_project())
    assert selection.files == tuple(sorted(CODE))
    assert selection.num_bytes == sum(len(name) for name in CODE)
    if has_git:
        left = selection.left_out
        assert left["called like secrets"] == len(SECRETS)
        assert left["data or weights"] == len(HEAVY)
        assert left["hidden"] == len(HIDDEN)
        assert left["caches"] == len(CACHED) + 2


def test_a_credential_in_a_file_keeps_it_here(root: Path) -> None:
    fill(root, "train.py", "rows.csv")
    (root / "settings.py").write_text('URL = "x"\nDATABASE = "postgresql://ann:hunter22@db/x"\n')
    (root / "key.txt").write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    (root / "picture.dat").write_bytes(b"\0://ann:hunter22@db/")
    selection = select(open_project())
    assert selection.files == ("picture.dat", "train.py")
    assert selection.left_out["for a credential in line 2 of settings.py"] == 1
    assert selection.left_out["for a credential in line 1 of key.txt"] == 1
    (root / "rows.csv").write_text("text,label\nhf_" + "a1" * 15 + ",x\n")
    with pytest.raises(ConfigError, match=r"rows.csv holds a credential in line 2 and is not sent\. Take it out"):
        select(open_project(), named=[root / "rows.csv"])


def test_git_tells_what_is_ignored(root: Path) -> None:
    fill(root, "train.py", "new.py", "ignored/big.txt", "build/made.py", "gone.py")
    (root / ".gitignore").write_text("ignored/\n")
    git(root, "init", "-q")
    git(root, "add", "train.py", "build/made.py", "gone.py")
    (root / "gone.py").unlink()
    assert select(open_project()).files == ("build/made.py", "new.py", "train.py")
    (root / ".git").rename(root / "git-of-old")
    assert "ignored/big.txt" in select(open_project()).files


def test_where_git_does_not_answer_nothing_is_sent(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder of another owner: all files would go, those that git ignores among them."""
    git(root, "init", "-q")
    fill(root, "train.py", "local_settings.py")
    (stub := tmp_path / "bin" / "git").parent.mkdir()
    stub.write_text("#!/bin/sh\necho 'fatal: detected dubious ownership' >&2\nexit 128\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match=r"dubious ownership.*must not be sent"):
        select(open_project())


def test_links(root: Path, tmp_path: Path) -> None:
    fill(root, "a.py", "rows.csv", ".env")
    fill(tmp_path, "outside.py", "folder/inside.py")
    for name, target in {
        "inner.py": root / "a.py",
        "outer.py": tmp_path / "outside.py",
        "folder": tmp_path / "folder",
        "innocent.txt": root / ".env",
        "rows.txt": root / "rows.csv",
        "nowhere.py": root / "missing",
    }.items():
        (root / name).symlink_to(target)
    for init in (False, True):
        if init:
            git(root, "init", "-q")
        project = open_project()
        selection = select(project)
        assert selection.files == ("a.py", "inner.py")
        with staged(project, selection) as folder:
            assert (folder / "inner.py").read_text() == "a.py"
            assert not (folder / "inner.py").is_symlink()


def test_named_files_travel_whatever_their_kind_but_secrets_do_not(root: Path) -> None:
    fill(root, "train.py", "rows.csv", ".hidden/run.yaml", "credentials.csv", ".aws/x.csv")
    project = open_project()
    named = [root / "rows.csv", root / ".hidden" / "run.yaml"]
    assert select(project, named).files == (".hidden/run.yaml", "rows.csv", "train.py")
    for secret in ("credentials.csv", ".aws/x.csv"):
        with pytest.raises(ConfigError, match="called like a secret"):
            select(project, [root / secret])
    (root / "plain.csv").symlink_to(root / "credentials.csv")
    with pytest.raises(ConfigError, match="called like a secret"):
        select(project, [root / "plain.csv"])


def test_storage_inside_the_project_stays(root: Path) -> None:
    fill(root, "train.py", "made/student/0/config.json")
    assert select(open_project(), storage=root / "made").files == ("train.py",)


def test_limits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, "a.py", "b.txt")
    with (root / "large.txt").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    project = open_project()
    assert select(project).left_out == {"above 10 MB": 1}
    with pytest.raises(ConfigError, match=r"large\.txt has 10\.0 MB"):
        select(project, [root / "large.txt"])
    monkeypatch.setattr(packing, "MAX_BYTES", 5)
    with pytest.raises(ConfigError, match=r"The largest: b\.txt \(0\.0 MB\), a\.py"):
        select(project)
    monkeypatch.setattr(packing, "MAX_BYTES", 10**6)
    monkeypatch.setattr(packing, "MAX_FILES", 1)
    with pytest.raises(ConfigError, match="2 files or more"):
        select(project)


def test_too_much_is_no_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    for folder in (Path(os.sep), root.parent):
        monkeypatch.chdir(folder)
        with pytest.raises(ConfigError, match="too much to be a project"):
            open_project()
    assert open_project(is_sent=False) == root.parent  # as for a check of the nodes
