from pathlib import Path

import pytest
import torch
from kit.tiny import save_tiny, tiny_classifier, tiny_inputs
from safetensors.torch import load_file

from raydistill.errors import ConfigError, ModelError
from raydistill.models.folder import model_digest, resolve_model, settle, settled, settled_models, tokenizer_digest
from raydistill.models.head import Head
from raydistill.models.load import has_head, load_model

LABELS = ("sport", "tech", "film")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs("bert")).logits


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert resolve_model(str(folder)) == folder
    (folder / "model.safetensors").unlink()
    for refuse in (lambda: resolve_model(str(folder)), lambda: load_model(folder, Head(LABELS))):
        with pytest.raises(ModelError, match=r"pytorch_model\.bin.*save_pretrained"):
            refuse()


def test_resolve_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    assert resolve_model(str(folder)) == folder
    with pytest.raises(ConfigError):
        resolve_model(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="not a folder"):
        resolve_model(str(folder / "config.json"))
    for name in ("tokenizer.json", "config.json"):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=name.split(".")[0]):
            resolve_model(str(folder))


def test_names_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"nobody/nothing.*HF_HUB_OFFLINE is set.*give the folder") as caught:
        resolve_model("nobody/nothing")
    assert "hf auth login" not in str(caught.value)
    with pytest.raises(ModelError, match="not a valid name"):
        resolve_model("no..body/nothing")
    with pytest.raises(ModelError, match="not one that a run made"):
        resolve_model("s3://bucket/model")


def test_a_hub_that_cannot_be_reached_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def away(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", away)
    with pytest.raises(ModelError, match=r"the Hugging Face hub cannot be reached, and its cache here lacks it"):
        resolve_model("nobody/nothing")


def test_a_name_leads_to_the_commit_that_it_first_led_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A branch that moves on while a run is under way moves neither the driver nor a worker that joins."""
    heads = [save_tiny(tmp_path / "snapshots" / (letter * 40), seed=seed) for seed, letter in enumerate("ab")]
    asked: list[str | None] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        return str(heads[0 if len(asked) == 1 else -1] if revision in (None, "main") else heads[0].with_name(revision))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with settled_models():
        assert [resolve_model("me/model"), resolve_model("me/model")] == [heads[0], heads[0]]
        names = settled()
    assert resolve_model("me/model") == heads[1]
    settle(names)  # as a worker does
    assert resolve_model("me/model") == heads[0]
    assert resolve_model("me/model", "main") == heads[1]  # another name
    with settled_models():
        assert resolve_model("me/model") == heads[1]  # another run
    assert asked == [None, "a" * 40, None, "a" * 40, "main", None]


def test_a_worker_refuses_a_folder_of_other_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with settled_models():
        folder = resolve_model(str(save_tiny(tmp_path / "model")))
        names = settled()
    monkeypatch.setattr("raydistill.models.folder._checked", set())  # another process
    settle(names)
    assert resolve_model(str(folder)) == folder
    (folder / "modeling_own.py").write_text("code that nobody trusts")
    assert resolve_model(str(folder)) == folder
    save_tiny(folder, seed=1)
    with pytest.raises(ModelError, match=r"is not here what it was where the run began.*Copy the same folder"):
        resolve_model(str(folder))
    settle({})
    assert resolve_model(str(folder)) == folder


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b")
    digest, tokens = model_digest(first), tokenizer_digest(first)
    assert (digest, tokens) == (model_digest(second), tokenizer_digest(second))
    (first / "README.md").write_text("read me")
    (first / "training_args.json").write_text("{}")
    assert model_digest(first) == digest
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (first / name).read_bytes()
        flipped = bytearray(content)
        flipped[-5] ^= 1
        (first / name).write_bytes(flipped)
        assert model_digest(first) != digest
        assert (tokenizer_digest(first) != tokens) == (name == "tokenizer.json")
        (first / name).write_bytes(content)
    assert model_digest(first) == digest


def test_sharded_weights_are_one_model(tmp_path: Path) -> None:
    whole = save_tiny(tmp_path / "whole", labels=LABELS)
    shards = tmp_path / "shards"
    tiny_classifier("bert", labels=LABELS).save_pretrained(shards, max_shard_size="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert has_head(shards)
    assert torch.equal(logits(load_model(shards, Head(LABELS))), logits(load_model(whole, Head(LABELS))))
    digest = model_digest(shards)
    rewritten = sorted(shards.glob("*.safetensors"))[-1]
    rewritten.write_bytes(rewritten.read_bytes()[:-1] + b"\1")
    assert model_digest(shards) != digest
    rewritten.unlink()
    with pytest.raises(ModelError, match=rewritten.name):
        load_model(shards, Head(LABELS))
