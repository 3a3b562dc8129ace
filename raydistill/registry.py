"""Students in MLflow: the model folder of a run, its version in the registry, aliases.

The stored folder is at once an ordinary Hugging Face folder and an MLflow model with two flavours, ``python_function``
(``mlflow.pyfunc.load_model``, ``mlflow models serve``) and ``transformers``; neither needs raydistill.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.artifacts import folder_digest
from raydistill.endpoint import sqlite_path, tracking_uri
from raydistill.errors import TrackingError
from raydistill.lineage import headline, redact_values
from raydistill.storage import Storage
from raydistill.tracking import RUN_KEY, RunRef, open_client, reported, set_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "student"
CHALLENGER = "challenger"
DIGEST = "raydistill.student_digest"
COMPLETE = "raydistill.complete"
SCORER = Path(__file__).parent / "models" / "scorer.py"


@dataclass(frozen=True)
class Version:
    """One registered student; ``created`` in milliseconds since 1970."""

    name: str
    version: int
    run_id: str
    source: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    created: int


def log_student(ref: RunRef, student: Path, *, max_length: int | None = None, has_pairs: bool = False) -> str:
    """Store a Hugging Face folder as the run's model; its ``runs:/`` URI. The same content is uploaded once.

    ``max_length``: tokens that the stored scorer cuts a row to. ``has_pairs``: its input has columns ``text`` and
    ``text_pair``. Raises TrackingError.
    """
    digest = folder_digest(student)
    with reported(ref.tracking_uri):
        client = open_client(ref.tracking_uri)
        if client.get_run(ref.run_id).data.tags.get(DIGEST) != digest or _missing_files(client, ref):
            with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch:
                folder = Path(scratch) / FOLDER
                write_model(student, folder, max_length=max_length, has_pairs=has_pairs)
                client.log_artifacts(ref.run_id, str(folder), FOLDER)
            set_tags(client, ref.run_id, {DIGEST: digest})
    return f"runs:/{ref.run_id}/{FOLDER}"


def write_model(student: Path, folder: Path, *, max_length: int | None = None, has_pairs: bool = False) -> None:
    """Write the student's files plus what MLflow needs to load and serve them; torch is not imported (0.3 s)."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    named = ("text", "text_pair") if has_pairs else (None,)  # one unnamed column: predict takes a list of strings
    inputs = Schema([ColSpec("string", name) for name in named])
    outputs = Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice to add an input example, which would load torch
        code = Path(scratch) / "raydistill_scorer.py"
        shutil.copyfile(SCORER, code)
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=code.stem,
            code_paths=[str(code)],
            model_config={"max_length": max_length},
            pip_requirements=[f"{name}=={_release(name)}" for name in ("mlflow", "torch", "transformers")],
            signature=ModelSignature(inputs, outputs),
        )
    shutil.copytree(student, folder, dirs_exist_ok=True)
    tokenizer = folder / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for file in student.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, tokenizer / file.name)
    model = Model.load(str(folder))
    model.add_flavor(
        "transformers",
        transformers_version=_release("transformers"),
        task="text-classification",
        instance_type="TextClassificationPipeline",
        framework="pt",
        source_model_name=FOLDER,
        pipeline_model_type="AutoModelForSequenceClassification",
        model_binary=".",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        tokenizer_name=FOLDER,
    )
    model.save(str(folder / "MLmodel"))


def register_student(
    ref: RunRef,
    name: str,
    student: Path,
    results: Mapping[str, Any],
    *,
    run_key: str,
    max_length: int | None = None,
    has_pairs: bool = False,
) -> int:
    """The student's version of registered model ``name``, tagged with its headline figures, alias ``challenger``.

    A run has one version of a name: doing it again completes or returns that one, and leaves an alias that has moved on
    to a later run's version where it is. Raises TrackingError; the alias is set after everything else.
    """
    source = log_student(ref, student, max_length=max_length, has_pairs=has_pairs)
    tags = {key: f"{value:.0f}" if value.is_integer() else f"{value:.6g}" for key, value in headline(results).items()}
    with reported(ref.tracking_uri):
        client = open_client(ref.tracking_uri)
        if missing := _missing_files(client, ref):  # MLflow would register any path, also one where nothing lies
            raise TrackingError(
                f"The run's artefact folder {FOLDER!r} lacks {', '.join(missing)}, so it was not registered. Check "
                "that MLflow's artefact store keeps what is written to it, then run the same command again."
            )
        tags |= {RUN_KEY: run_key, DIGEST: client.get_run(ref.run_id).data.tags[DIGEST]}
        found = client.search_model_versions(f"name = '{name}' and run_id = '{ref.run_id}'")
        if found:
            version = min(found, key=lambda one: int(one.version))
        else:
            _create_model(client, name)
            version = client.create_model_version(name, source, run_id=ref.run_id)
        if COMPLETE not in version.tags:
            for key, value in redact_values(tags).items():
                client.set_model_version_tag(name, version.version, key, value)
            client.set_registered_model_alias(name, CHALLENGER, version.version)
            client.set_model_version_tag(name, version.version, COMPLETE, "true")
        set_tags(client, ref.run_id, {"raydistill.model": name, "raydistill.model_version": str(version.version)})
    return int(version.version)


def list_versions(name: str, uri: str) -> list[Version]:
    """All versions of a registered model in the store ``uri``, newest first; none where the name is unknown."""
    with reported(uri):
        client = open_client(uri)
        found: list[ModelVersion] = []
        token: str | None = None
        while page := client.search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], page_token=token
        ):
            found.extend(page)
            token = page.token
            if not token:
                break
        if not found:
            return []
        aliases = client.get_registered_model(name).aliases  # search results have none
        return [_as_version(one, aliases) for one in found]


def version_by_alias(name: str, alias: str, uri: str) -> Version | None:
    """The version that has the alias, or None."""
    return next((version for version in list_versions(name, uri) if alias in version.aliases), None)


def _as_version(one: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    held = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(one.version)))
    return Version(
        one.name, int(one.version), one.run_id or "", one.source or "", dict(one.tags), held, one.creation_timestamp
    )


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _missing_files(client: MlflowClient, ref: RunRef) -> list[str]:
    present = {Path(file.path).name for file in client.list_artifacts(ref.run_id, FOLDER)}
    wanted = {"MLmodel", "config.json"}
    if "model.safetensors.index.json" not in present:  # a large model comes in several files and an index
        wanted.add("model.safetensors")
    return sorted(wanted - present)


def _release(package: str) -> str:
    """Version without a local part: 2.13.0+cpu is on no package index."""
    return package_version(package).split("+")[0]


def resolve_model_uri(uri: str, storage: Storage) -> Path:
    """The local folder of ``runs:/RUN/PATH``, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``, fetched if remote.

    The store is the one that runs of ``storage`` are tracked in. Raises TrackingError where there is no such model.
    """
    address = tracking_uri(storage)
    database = sqlite_path(address)
    if database is not None and not database.is_file():
        raise TrackingError(
            f"{uri}: there is no MLflow store at {database}. Name the storage of the run with --storage, or set "
            "MLFLOW_TRACKING_URI."
        )
    with reported(address):
        client = open_client(address)
        from mlflow.artifacts import download_artifacts

        if uri.startswith("models:/"):  # MLflow looks such names up in a global registry, not in the store it is given
            name, _, version = uri.removeprefix("models:/").strip("/").partition("/")
            if "@" in name:
                name, _, alias = name.partition("@")
                version = client.get_model_version_by_alias(name, alias).version
            if not version:
                raise TrackingError(f"{uri} names no version. Write models:/{name}/VERSION or models:/{name}@ALIAS.")
            uri = client.get_model_version_download_uri(name, version)
        return Path(download_artifacts(artifact_uri=uri, tracking_uri=address))
