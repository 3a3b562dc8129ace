"""The recipes of jobs/: ready configs, listed and copied by `raydistill init`."""

from __future__ import annotations

from pathlib import Path

from raydistill.errors import ConfigError
from raydistill.schema import nearest


def recipes_folder() -> Path:
    """`raydistill/jobs` in an installed wheel, `jobs` beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "jobs", package.parent / "jobs"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise ConfigError(f"No recipes are installed beside {package}; install raydistill again.")


def list_recipes() -> dict[str, str]:
    """Recipe names and what their first comment line says."""
    return {path.stem: first_comment(path) for path in sorted(recipes_folder().glob("*.yaml"))}


def first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").strip() if line.startswith("#") else ""


def read_recipe(name: str) -> str:
    """The text of a recipe; ConfigError with the nearest name where there is none."""
    known = list_recipes()
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}? " if near else ""
        raise ConfigError(f"There is no recipe {name!r}; {hint}Recipes: {', '.join(known)}.")
    return (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def copy_recipe(name: str, target: Path, overwrite: bool = False) -> None:
    """Copy a recipe to `target`; ConfigError where something is there already or it cannot be written."""
    text = read_recipe(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{target} exists already; choose another name with --out, or add --force.") from None
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}. Choose another place with --out.") from None
