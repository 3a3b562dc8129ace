"""Finished models of pictures: answers for files, folders and tables, exports, MLflow, the page."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.pictures import KINDS, picture_config, png, toy_picture

from raydistill.cli import main as cli
from raydistill.config.data import Data
from raydistill.config.loading import load_config
from raydistill.deploy.comparison import compare_models
from raydistill.deploy.export.export import export
from raydistill.deploy.inference import evaluate_model
from raydistill.evaluate.report.page import page_text
from raydistill.pipeline.distill import distill


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return distill(load_config(picture_config(folder, evaluate__latency=True)))


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Path:
    """A folder of pictures, one of them broken, and tables that name or hold them."""
    made, draw = folder / "fresh", np.random.default_rng(7)
    made.mkdir()
    for number, kind in enumerate(KINDS):
        (made / f"{number}.png").write_bytes(png(toy_picture(kind, draw)))
    (made / "bad.png").write_bytes(b"junk")
    names = [*(f"{number}.png" for number in range(len(KINDS))), "bad.png", "gone.png"]
    (made / "rows.csv").write_text("\n".join(["number,photo", *(f"{i},{name}" for i, name in enumerate(names))]))
    contents = [(made / name).read_bytes() if (made / name).exists() else None for name in names]
    images = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
    pq.write_table(pa.table({"image": images}), made / "rows.parquet")
    return made


def called(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """Exit code of `raydistill predict`, and its JSON."""
    capfd.readouterr()
    code = cli.execute(["predict", *map(str, arguments), "--json"])
    return code, json.loads(capfd.readouterr().out)


def predicted(capfd: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    code, found = called(capfd, *arguments)
    assert code == 0, found
    rows: list[dict[str, Any]] = found["predictions"]
    return rows


@pytest.mark.slow
def test_files_folders_and_tables_of_pictures_get_the_same_answers(
    results: dict[str, Any], fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = results["student"]["path"]
    several = predicted(capfd, model, "--file", fresh)
    assert [row["image"] for row in several] == ["0.png", "1.png", "2.png", "3.png", "bad.png"]
    assert [row["label"] is None for row in several] == [False] * 4 + [True]
    one = predicted(capfd, model, "--file", fresh / "2.png")
    assert one[0]["scores"] == pytest.approx(several[2]["scores"], abs=1e-6)
    for table in ("rows.csv", "rows.parquet"):
        rows = predicted(capfd, model, "--file", fresh / table)
        assert [row["label"] for row in rows] == [*(row["label"] for row in several), None]
        assert rows[0]["scores"] == pytest.approx(several[0]["scores"], abs=1e-6)


@pytest.mark.slow
def test_answers_join_the_table(
    results: dict[str, Any], fresh: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [results["student"]["path"], "--file", fresh / "rows.parquet", "--out"]
    assert called(capfd, *arguments, folder / "out.csv")[0] == 0
    with open(folder / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows][-2:] == ["bad.png", "gone.png"]
    assert rows[0].keys() >= {"image", "label", "score", "score_dots"}
    assert rows[-1]["label"] == ""


@pytest.mark.slow
def test_texts_are_refused(results: dict[str, Any], fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = results["student"]["path"]
    for arguments in (["--text", "hello"], ["--file", str(fresh / "0.png"), "--max-length", "8"]):
        code, found = called(capfd, model, *arguments)
        assert code == 2
        assert "pictures" in found["error"]["message"]


@pytest.mark.slow
def test_a_model_is_measured_on_its_rows_and_on_others(results: dict[str, Any], folder: Path) -> None:
    model, storage = results["student"]["path"], str(folder / "storage")
    own = evaluate_model(model, storage=storage, num_samples=100)
    test = results["student"]["test"]
    assert own["metrics"]["accuracy"]["value"] == pytest.approx(test["accuracy"]["value"])
    assert own["metrics"]["log_loss"]["value"] == pytest.approx(test["log_loss"]["value"], abs=1e-4)
    named = evaluate_model(model, Data(path=str(folder / "pictures")), storage=storage, num_samples=100)
    assert named["num_rows"] == 160
    teacher = results["teacher"]["path"]
    pair = compare_models([teacher, model], None, storage=storage, latency=True)["pairs"][0]
    assert pair["latency_ratio"] > 0
    assert pair["agreement"] == pytest.approx(results["student"]["agreement"])


@pytest.fixture(scope="module")
def exports(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    storage = str(folder / "storage")
    return export(results["student"]["path"], "all", folder / "exports", storage=storage, latency=False, margin=0.3)


@pytest.mark.slow
def test_every_format_holds_what_torch_says(exports: dict[str, Any]) -> None:
    assert exports["good"], exports["formats"]
    assert exports["formats"]["onnx"]["largest_difference"] < 1e-4
    assert set(exports["formats"]) == {"onnx", "onnx-int8", "torch-int8", "safetensors-bf16"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "safetensors-bf16"])
def test_the_lines_of_an_export_run_as_they_stand(form: str, exports: dict[str, Any], fresh: Path) -> None:
    place = Path(exports["formats"][form]["path"])
    for name, source in (("one.jpg", "0.png"), ("another.jpg", "1.png")):
        shutil.copyfile(fresh / source, place / name)
    lines = [*json.loads((place / "export.json").read_text())["load"], "print(tuple(logits.shape))"]
    told = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=place, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == "(2, 4)"
    assert "tokens of a row" not in (place / "README.md").read_text()


@pytest.mark.slow
def test_mlflow_loads_a_version_in_both_ways(
    results: dict[str, Any], fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = f"models:/stripes/{results['model_version']}"
    scorer = mlflow.pyfunc.load_model(name)
    contents = [(fresh / f"{number}.png").read_bytes() for number in range(2)]
    answers = scorer.predict(contents)
    assert scorer.predict(pandas.DataFrame({"image": contents})) == answers
    expected = predicted(capfd, results["student"]["path"], "--file", fresh)[:2]
    assert [answer["label"] for answer in answers] == [row["label"] for row in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    found = mlflow.transformers.load_model(name)(str(fresh / "0.png"))
    assert found[0]["label"] == answers[0]["label"]


@pytest.mark.slow
def test_the_page_shows_small_pictures_and_nothing_of_tokens(results: dict[str, Any]) -> None:
    page = page_text({**results, "errors": [{**row, "text": "<script>x</script>"} for row in results["errors"]]})
    shown = [row["image"] for row in results["disagreements"]]
    assert shown
    for image in shown:
        assert image.replace("+", "&#43;") in page or image in page
    assert "<script>x</script>" not in page
    assert "pipeline(&#34;image-classification&#34;" in page
    assert "tokens of each text" not in page
    assert "Pictures, all of one size." in page
    assert "None tokens" not in page
