"""What `raydistill init` lists and copies from jobs/ (recipes, which are ready configs, and other files) or writes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.config.tree import STORAGE
from raydistill.errors import ConfigError, nearest

if TYPE_CHECKING:
    from raydistill.data.survey import Survey


@dataclass(frozen=True)
class Starter:
    """A file of jobs/; ``use`` gives the command that takes a copy of it."""

    file: Path
    about: str
    use: Callable[[Path], str]
    is_recipe: bool


def starters_folder() -> Path:
    """`raydistill/jobs` in an installed wheel, `jobs` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "jobs", package.parent / "jobs"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise ConfigError(f"No recipes are installed beside {package}; install raydistill again.")


def list_starters() -> dict[str, Starter]:
    """Everything that can be copied, recipes first; ``about`` is what the file's first line says."""
    folder = starters_folder()
    files = sorted(
        path for path in [*folder.iterdir(), *folder.glob("kubernetes/*")] if path.suffix in (".yaml", ".py")
    )
    found = [(path.stem, Starter(path, first_line(path), *OTHERS.get(path.stem, (run_with, True)))) for path in files]
    return dict(sorted(found, key=lambda pair: not pair[1].is_recipe))


def first_line(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip('#" ').strip() if line.startswith(("#", '"""')) else ""


def run_with(copy: Path) -> str:
    command = "sweep" if "\nsweep:" in copy.read_text(encoding="utf-8") else "distill"
    return f"raydistill {command} {shlex.quote(str(copy))}"


def promote_with(copy: Path) -> str:
    return f"raydistill promote NAME --gate {shlex.quote(str(copy))}"


def serve_with(copy: Path) -> str:
    store = "" if os.environ.get("MLFLOW_TRACKING_URI") else f"MLFLOW_TRACKING_URI=sqlite:///{STORAGE}/mlflow.db "
    folder = "" if copy.parent == Path() else f"--app-dir {shlex.quote(str(copy.parent))} "
    return f"{store}serve run {folder}{copy.stem}:app name=NAME"


def start_with(copy: Path) -> str:
    return f"ray up {shlex.quote(str(copy))}"


def apply_with(copy: Path) -> str:
    return f"kubectl apply -f {shlex.quote(str(copy))}"


OTHERS = {
    "cluster": (start_with, False),
    "gate": (promote_with, False),
    "raycluster": (apply_with, False),
    "rayjob": (apply_with, False),
    "serve": (serve_with, False),
}


def find_starter(name: str) -> Starter:
    """The starter of this name; ConfigError with the nearest name where there is none."""
    known = list_starters()
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}? " if near else ""
        raise ConfigError(f"There is nothing called {name!r} to start from; {hint}Known: {', '.join(known)}.")
    return known[name]


def copy_starter(name: str, target: Path | None = None, overwrite: bool = False) -> tuple[Path, str]:
    """Copy a starter to ``target``, into this folder by default; where it is now, and the command that takes it.

    Raises ConfigError where something is there already or it cannot be written.
    """
    starter = find_starter(name)
    target = target or Path(starter.file.name)
    write_new(target, starter.file.read_text(encoding="utf-8"), overwrite)
    return target, starter.use(target)


def write_new(target: Path, text: str, overwrite: bool = False) -> None:
    """Write a file that is not there yet, its folder too. ConfigError where it is, or cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise already_there(target) from None
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}. Choose another place with --out.") from None


def already_there(target: Path) -> ConfigError:
    return ConfigError(f"{target} exists already; choose another name with --out, or add --force.")


def write_proposal(
    data: str, overrides: Sequence[str], teacher: str | None, target: Path | None, overwrite: bool = False
) -> tuple[Path, str, Survey]:
    """Write a config for the texts at ``data``; where it is, the command that takes it, and what was found in them.

    Raises ConfigError where something is there already, and whatever a run would, before any work.
    """
    from raydistill.cli.proposal import name_of, propose
    from raydistill.config.loading import data_config

    target = target or Path(f"{name_of(data)}.yaml")
    if target.exists() and not overwrite:  # before the texts are read
        raise already_there(target)
    text, survey = propose(data_config(data, overrides), teacher)
    write_new(target, text, overwrite)
    return target, f"raydistill plan {shlex.quote(str(target))}", survey
