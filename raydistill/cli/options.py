"""Arguments and options of the commands, those that several have in common above all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raydistill.errors import ConfigError


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"raydistill {version('raydistill')}")
        raise typer.Exit


ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file; relative paths in it count from here.")]
TeacherModel = Annotated[
    str | None,
    typer.Option(
        "--teacher", metavar="MODEL", help="Without a config: distil this model on the data that CONFIG names instead."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a value by dotted name, VALUE as in YAML. Repeatable."),
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a value of data: --set data.max_length=64."),
]


def source_of(config: str, teacher: str | None) -> str | dict[str, Any]:
    """The config file or, with a teacher's name, the config that data and teacher amount to, and a baseline."""
    if teacher is None:
        refuse_table(config, "Name the model to distil on it: --teacher MODEL")
        return config
    return {"data": {"path": config}, "teacher": {"model": teacher}, "evaluate": {"baseline": True}}


def refuse_table(config: str, way_out: str) -> None:
    """ConfigError where a table stands in a config's place."""
    if Path(config.lower().removesuffix(".gz")).suffix in (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson"):
        raise ConfigError(f"{config} is a table, not a config. {way_out}")


def with_storage(overrides: list[str] | None, storage: str | None, challenger: bool = False) -> list[str]:
    """The overrides of a config, and what ``--storage`` and ``--challenger`` say as the last of them."""
    from json import dumps

    place = [f"storage={dumps(storage)}"] if storage is not None else []
    return [*(overrides or []), *place, *(["registry.challenger=true"] if challenger else [])]


# Parsed here so that --help shows it; console.run looks for it itself, because parsing may fail.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
StorageUrl = Annotated[str, typer.Option("--storage", metavar="PATH_OR_URL", help="Where artefacts lie.")]
ConfigStorage = Annotated[
    str | None,
    typer.Option("--storage", metavar="PATH_OR_URL", help="Where artefacts lie, whatever the config says."),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", min=4, help="Tokens a text is cut to; default: as trained, if stored, else all."),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, pkg://…, a hub name, runs:/… or models:/NAME@ALIAS.")
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A registered model, as registry.name in a config.")]
DataPath = Annotated[
    str | None,
    typer.Option("--data", help="A file, a folder, pkg://… or a hub data set, with labels; default: the run's own."),
]
SplitName = Annotated[str, typer.Option("--split", help="Which rows, where the data has splits.")]
Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print it.")]
