"""What `raydistill init` lists and copies from jobs/ (recipes, which are ready configs, and other files) or writes."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from raydistill.config.tree import STORAGE
from raydistill.errors import ConfigError, did_you_mean

OTHERS = ("cluster", "gate", "raycluster", "rayjob", "serve")
"""Starters that are no recipes."""


@dataclass(frozen=True)
class Starter:
    """A file of jobs/; ``about`` is what its first line says."""

    file: Path
    about: str

    @property
    def is_recipe(self) -> bool:
        return self.file.stem not in OTHERS


def starters_folder() -> Path:
    """`raydistill/jobs` in an installed wheel, `jobs` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "jobs", package.parent / "jobs"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise ConfigError(f"No recipes are installed beside {package}; install raydistill again.")


def list_starters() -> dict[str, Starter]:
    """Everything that can be copied, recipes first."""
    folder = starters_folder()
    files = [path for path in [*folder.iterdir(), *folder.glob("kubernetes/*")] if path.suffix in (".yaml", ".py")]
    known = {path.stem: Starter(path, first_line(path)) for path in sorted(files)}
    return dict(sorted(known.items(), key=lambda pair: not pair[1].is_recipe))


def first_line(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip('#" ').strip() if line.startswith(("#", '"""')) else ""


def command_for(copy: Path, starter: str, is_sweep: bool) -> str:
    """The command that takes a copy of a starter."""
    file = shlex.quote(str(copy))
    match starter:
        case "cluster":
            return f"ray up {file}"
        case "gate":
            return f"raydistill promote NAME --gate {file}"
        case "raycluster" | "rayjob":
            return f"kubectl apply -f {file}"
        case "serve":
            local = f"MLFLOW_TRACKING_URI=sqlite:///{STORAGE}/mlflow.db "
            store = "" if os.environ.get("MLFLOW_TRACKING_URI") else local
            folder = "" if copy.parent == Path() else f"--app-dir {shlex.quote(str(copy.parent))} "
            return f"{store}serve run {folder}{copy.stem}:app name=NAME"
        case _:
            return f"raydistill {'sweep' if is_sweep else 'distill'} {file}"


def copy_starter(name: str, target: Path | None = None, overwrite: bool = False) -> tuple[Path, str]:
    """Copy a starter to ``target``, into this folder by default; where it is now, and the command that takes it.

    Raises ConfigError where there is none of this name, where something is there already or it cannot be written.
    """
    known = list_starters()
    if name not in known:
        raise ConfigError(f"There is nothing called {name!r} to start from. {did_you_mean(name, known)}")
    text = known[name].file.read_text(encoding="utf-8")
    target = target or Path(known[name].file.name)
    write_new(target, text, overwrite)
    return target, command_for(target, name, "\nsweep:" in text)


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
