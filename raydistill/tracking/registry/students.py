"""The student of a run in MLflow: its model folder, its version in the registry.

The stored folder is at once an ordinary Hugging Face folder and an MLflow model with two flavours, ``python_function``
(``mlflow.pyfunc.load_model``, ``mlflow models serve``) and ``transformers``; neither needs raydistill.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import TrackingError
from raydistill.models.folder import CARD
from raydistill.models.head import (
    EMBEDDING_FIELD,
    IMAGE,
    MASKED,
    OBJECTS,
    OF_PICTURES,
    SIDES,
    SPAN,
    TOKEN,
    kind_of_architectures,
)
from raydistill.storage.manifest import file_digest, folder_digest
from raydistill.tracking.lineage import headline
from raydistill.tracking.registry.versions import find_run
from raydistill.tracking.runs import CLOSED, DIGEST, RUN_KEY, RunRef, open_client, reported, set_tags, set_version_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.types import Schema

FOLDER = "student"
CHALLENGER = "challenger"
COMPLETE = "raydistill.complete"
SCORER = Path(__file__).parents[2] / "models" / "scorer.py"


def log_student(
    ref: RunRef, student: Path, *, card: str | None = None, max_length: int | None = None, has_pairs: bool = False
) -> str:
    """Store a Hugging Face folder as the run's model; its ``runs:/`` URI. The same content is uploaded once, and never
    in the place of another.

    ``card``: text of the run's own model card; another run's may lie in the folder, so it is no part of the digest.
    ``max_length``: tokens that the stored scorer cuts a row to. ``has_pairs``: its input has columns ``text`` and
    ``text_pair``. Raises TrackingError.
    """
    digest = folder_digest(student, without=(CARD,))
    with reported(ref.tracking_uri):
        client = open_client(ref.tracking_uri)
        stored = client.get_run(ref.run_id).data.tags.get(DIGEST)
        if stored not in (None, digest):
            set_tags(client, ref.run_id, {CLOSED: "true"})
            raise TrackingError(
                f"The MLflow run {ref.run_id} holds another student already, which versions of a registered model may "
                "be made of; it stays as it is. Run the same command again: everything computed is kept, and goes into "
                "a new run."
            )
        if stored is None or _missing_files(client, ref):
            with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch:
                folder = Path(scratch) / FOLDER
                write_model(student, folder, max_length=max_length, has_pairs=has_pairs)
                client.log_artifacts(ref.run_id, str(folder), FOLDER)
            set_tags(client, ref.run_id, {DIGEST: digest})
        if card is not None:
            client.log_text(ref.run_id, card, f"{FOLDER}/{CARD}")
    return f"runs:/{ref.run_id}/{FOLDER}"


def write_model(student: Path, folder: Path, *, max_length: int | None = None, has_pairs: bool = False) -> None:
    """Write the student's files plus what MLflow needs to load and serve them; torch is not imported (0.3 s)."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    named = ("text", "text_pair") if has_pairs else (None,)  # one unnamed column: predict takes a list of strings
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    outputs, kind = answer_schema(config), kind_of_architectures(config.get("architectures"))
    is_text = kind not in OF_PICTURES
    inputs = Schema([ColSpec("string", name) for name in named] if is_text else [ColSpec("binary")])
    is_encoder = EMBEDDING_FIELD in config
    needed = ("mlflow", "torch", "transformers", *(() if is_text else ("pillow",)))
    with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice to add an input example, which would load torch
        # named by its content: one process may load versions of two releases, and Python keeps one module of a name
        code = Path(scratch) / f"raydistill_scorer_{file_digest(SCORER)[:8]}.py"
        shutil.copyfile(SCORER, code)
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=code.stem,
            code_paths=[str(code)],
            model_config={"max_length": max_length},
            pip_requirements=[f"{name}=={_release(name)}" for name in needed],
            signature=ModelSignature(inputs, outputs),
        )
    shutil.copytree(student, folder, dirs_exist_ok=True)
    part, auto = ("tokenizer", "AutoTokenizer") if is_text else ("image_processor", "AutoImageProcessor")
    reader = folder / "components" / part
    reader.mkdir(parents=True)
    for file in student.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != CARD:
            shutil.copyfile(file, reader / file.name)
    if kind == SPAN:  # transformers 5 has no pipeline for it
        return
    model = Model.load(str(folder))
    # MLflow runs the code in the folder for a class that transformers lacks
    own_class = {"pipeline_model_type": config["architectures"][0]} if "auto_map" in config else {}
    model.add_flavor(
        "transformers",
        transformers_version=_release("transformers"),
        **(pipeline_of(kind, is_encoder) | own_class),
        framework="pt",
        source_model_name=FOLDER,
        model_binary=".",
        components=[part],
        **{f"{part}_type": auto, f"{part}_name": FOLDER},
    )
    model.save(str(folder / "MLmodel"))


def pipeline_of(kind: str, is_encoder: bool) -> dict[str, str]:
    """What MLflow's flavour of transformers calls the pipeline of a model."""
    if is_encoder:
        names = ("feature-extraction", "FeatureExtractionPipeline", "AutoModel")
    elif kind == MASKED:
        names = ("fill-mask", "FillMaskPipeline", f"AutoModelFor{kind}")
    elif kind == IMAGE:
        names = ("image-classification", "ImageClassificationPipeline", f"AutoModelFor{kind}")
    elif kind == OBJECTS:
        names = ("object-detection", "ObjectDetectionPipeline", f"AutoModelFor{kind}")
    elif kind == TOKEN:
        names = ("token-classification", "TokenClassificationPipeline", f"AutoModelFor{kind}")
    else:
        names = ("text-classification", "TextClassificationPipeline", f"AutoModelFor{kind}")
    return dict(zip(("task", "instance_type", "pipeline_model_type"), names, strict=True))


def answer_schema(config: Mapping[str, Any]) -> Schema:
    """The columns that the stored scorer answers with, by a model's config.json; see ``models.scorer``."""
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType, Map, Object, Property

    if EMBEDDING_FIELD in config:
        return Schema([ColSpec(Array(DataType.double), "vector")])
    if kind_of_architectures(config.get("architectures")) == TOKEN:
        parts = {"label": "string", "text": "string", "start": "long", "end": "long", "score": "double"}
        entity = Object([Property(name, DataType[kind]) for name, kind in parts.items()])
        return Schema([ColSpec(Array(entity), "entities")])
    if kind_of_architectures(config.get("architectures")) == OBJECTS:
        box = Object([Property(side, DataType.double) for side in SIDES])
        found = Object([Property("label", DataType.string), Property("score", DataType.double), Property("box", box)])
        return Schema([ColSpec(Array(found), "objects")])
    if kind_of_architectures(config.get("architectures")) == MASKED:
        word = Object([Property("word", DataType.string), Property("score", DataType.double)])
        return Schema([ColSpec(Array(Array(word)), "words")])
    if kind_of_architectures(config.get("architectures")) == SPAN:
        place = {"start": "long", "end": "long"}
        parts = {"text": "string", **place, "score": "double"}
        answer = Object([Property(name, DataType[kind]) for name, kind in parts.items()])
        columns = [ColSpec(kind, name) for name, kind in {"answer": "string", "score": "double"}.items()]
        columns += [ColSpec(kind, name, required=False) for name, kind in place.items()]
        return Schema([*columns, ColSpec(Array(answer), "answers")])
    num_outputs = len(config.get("id2label") or "ab")  # two are not written
    named: dict[str, Any] = {"label": "string", "score": "double"}
    match config.get("problem_type") or ("regression" if num_outputs == 1 else ""):
        case "regression":
            named = {"value": "double"}
        case "multi_label_classification":
            named = {"labels": Array(DataType.string), "scores": Map(DataType.double)}
    return Schema([ColSpec(kind, name) for name, kind in named.items()])


def register_student(
    ref: RunRef,
    name: str,
    student: Path,
    results: Mapping[str, Any],
    *,
    run_key: str,
    card: str | None = None,
    max_length: int | None = None,
    has_pairs: bool = False,
    takes_alias: bool = True,
) -> int:
    """The student's version of registered model ``name``, tagged with its headline figures, alias ``challenger`` if it
    ``takes_alias``.

    A run has one version of a name: doing it again completes or returns that one, and leaves an alias that has moved on
    to a later run's version where it is; to a complete one, its card included, nothing is written. Raises
    TrackingError; the alias is set after everything else.
    """
    with reported(ref.tracking_uri):
        known = _own_version(open_client(ref.tracking_uri), name, ref.run_id)
    card = None if known is not None and COMPLETE in known.tags else card
    source = log_student(ref, student, card=card, max_length=max_length, has_pairs=has_pairs)
    tags = {key: f"{value:.0f}" if value.is_integer() else f"{value:.6g}" for key, value in headline(results).items()}
    with reported(ref.tracking_uri):
        client = open_client(ref.tracking_uri)
        if missing := _missing_files(client, ref):  # MLflow would register any path, also one where nothing lies
            raise TrackingError(
                f"The run's artefact folder {FOLDER!r} lacks {', '.join(missing)}, so it was not registered. Check "
                "that MLflow's artefact store keeps what is written to it, then run the same command again."
            )
        tags |= {RUN_KEY: run_key, DIGEST: client.get_run(ref.run_id).data.tags[DIGEST]}
        version = _own_version(client, name, ref.run_id)
        if version is None:
            _create_model(client, name)
            made = client.create_model_version(name, source, run_id=ref.run_id)
            version = _own_version(client, name, ref.run_id) or made
        if COMPLETE not in version.tags:
            set_version_tags(client, name, version.version, tags)
            holder = int(client.get_registered_model(name).aliases.get(CHALLENGER, 0))
            if takes_alias and holder < int(version.version):
                client.set_registered_model_alias(name, CHALLENGER, version.version)
            client.set_model_version_tag(name, version.version, COMPLETE, "true")
        set_tags(client, ref.run_id, {"raydistill.model": name, "raydistill.model_version": str(version.version)})
    return int(version.version)


def is_tracked(run_id: str, uri: str, name: str | None, version: int | None) -> bool:
    """Whether the store has the run and, with a ``name``, this very ``version`` of it: another store may give the same
    number to another run's student. Raises TrackingError."""
    if name is None:
        return find_run(run_id, uri) is not None
    with reported(uri):
        own = open_client(uri).search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return version in {int(one.version) for one in own}


def name_challenger(name: str, version: int, uri: str) -> None:
    """Give a version the alias ``challenger``. Raises TrackingError."""
    with reported(uri):
        open_client(uri).set_registered_model_alias(name, CHALLENGER, str(version))


def _own_version(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """The run's version of the name: the one that is registered to its end, else the first.

    Others are orphans, made when MLflow's client repeated a request whose answer was lost; they are deleted unless an
    alias names them.
    """
    from mlflow.exceptions import MlflowException

    own = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    found = sorted(own, key=lambda one: (COMPLETE not in one.tags, int(one.version)))
    named = {int(number) for number in client.get_registered_model(name).aliases.values()} if found[1:] else set()
    for orphan in found[1:]:
        if COMPLETE in orphan.tags or int(orphan.version) in named:
            continue
        try:
            client.delete_model_version(name, orphan.version)
        except MlflowException as error:  # the answer to this one was lost, too
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return found[0] if found else None


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
