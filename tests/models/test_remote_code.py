"""Models that bring Python code of their own: run where the config says so, refused in words where it does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from kit.tiny import save_tiny, tiny_inputs
from kit.toy import TOPICS, toy_config

from raydistill.config.loading import load_config
from raydistill.deploy.opening import open_folder
from raydistill.errors import ModelError
from raydistill.models.head import Head
from raydistill.models.load import load_model
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan

CODE = """
from transformers import BertConfig, BertForSequenceClassification

class {name}Config(BertConfig):
    model_type = "toy-{name}"

class {name}Classifier(BertForSequenceClassification):
    config_class = {name}Config

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output
"""
TEACHER = {"finetune": {"num_epochs": 1, "learning_rate": 2e-3}, "trust_remote_code": True, "allow_chance": True}


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies such code into a cache before it imports it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def with_code(folder: Path, **changes: Any) -> Path:
    """A tiny BERT of a type that only the Python file beside its weights knows; its logits are twice BERT's."""
    save_tiny(folder, "bert", **changes)
    (folder / "code.py").write_text(CODE.format(name="Own"))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.OwnConfig", "AutoModelForSequenceClassification": "code.OwnClassifier"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "toy-Own", "auto_map": classes}))
    return folder


@pytest.mark.slow
def test_a_teacher_with_code_of_its_own_is_distilled(tmp_path):
    labels = tuple(sorted(TOPICS))
    teacher = with_code(tmp_path / "teacher", labels=labels)
    changes = {"teacher": TEACHER | {"model": str(teacher)}, "registry__name": None, "evaluate__latency": True}
    config = load_config(toy_config(tmp_path, **changes))
    plan = make_plan(config, check=True)
    assert any(finding.startswith("teacher.trust_remote_code") for finding in plan["findings"])
    results = distill(config)
    folder = Path(results["student"]["path"])
    assert (folder / "code.py").read_text() == (teacher / "code.py").read_text()
    student = load_model(folder, Head(labels), trust_remote_code=True)
    assert type(student).__name__ == "OwnClassifier"
    assert student.config.num_hidden_layers == 2
    inputs = tiny_inputs("bert")
    with torch.no_grad():
        hidden = student.classifier(student.bert(**inputs).pooler_output)
        assert torch.allclose(student(**inputs).logits, 2 * hidden, atol=1e-6)
    with pytest.raises(ModelError, match=r"own code can be a teacher only, with teacher\.trust_remote_code: true"):
        open_folder(folder)


def test_code_is_not_run_unless_the_config_says_so(tmp_path):
    teacher = with_code(tmp_path / "teacher", labels=tuple(sorted(TOPICS)))
    (teacher / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')" + CODE.format(name="Own"))
    config = toy_config(tmp_path, teacher={"model": str(teacher), "allow_chance": True})
    for refuse in (make_plan, distill):
        with pytest.raises(ModelError, match=r"teacher\.trust_remote_code: true, once you have read that code"):
            refuse(load_config(config))
    start = toy_config(tmp_path, student={"start": str(teacher)}, teacher__trust_remote_code=True)
    with pytest.raises(ModelError, match="can be a teacher only"):
        make_plan(load_config(start))
    assert not (tmp_path / "ran").exists()
