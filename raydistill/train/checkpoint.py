"""The loop's own checkpoints, ``<run>/<phase>/{last,best}``: the same under Ray Train, in local mode and in a sweep.

A checkpoint is a folder named by its step, and counts once the pointer ``last.json`` or ``best.json`` names it; the
pointer is written last and atomically, so that a kill at any moment leaves the previous one whole. Old reports lie in
pieces beside it: a piece is whole before a checkpoint counts on it, and one that a killed process wrote too early is
written again when the resumed one comes to it. No generator state is stored: dropout goes by (seed, step, row), the
data order by (seed, epoch).
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from raydistill.errors import ArtifactError
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage

PIECE = 1_000
"""Reports that a checkpoint holds at most, 0.2 MB; a run of a million steps has 100,000 of them."""

WORST = -1e30
"""Score of weights whose metric is not defined; finite, because JSON knows no infinity."""


@dataclass
class TrainProgress:
    """How far a phase has come: everything but the weights and the optimizer."""

    step: int = 0
    best_score: float | None = None
    best_samples: list[float] = field(default_factory=list)
    """The best score on resamples of the rows."""
    validations_without_gain: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    """The last reports: metrics by name, and ``step``, ``validated`` and ``kept``. Those before them lie in files of
    their own."""
    num_pieces: int = 0
    """Such files, of ``PIECE`` reports each."""
    trail: list[tuple[int, float, list[float]]] = field(default_factory=list)
    """Of a stage whose end is still open: step, score of the main metric and its resamples at each validation."""
    has_learned: bool = False
    """Of such a stage: whether a validation has found the model better than one that sees no row."""
    extended_from: int | None = None
    """Of a stage that goes on beyond its least length: the step at which that was decided."""
    decay_from: int | None = None
    """Of a stage whose end was open: the step at which it was decided; an extended one's rate falls from there."""

    def take(self, score: float, samples: np.ndarray) -> bool:
        """Note a validation's score, and return whether its weights are those to keep.

        They are where they are the best so far, and where no more than chance says that the best ones are better: the
        difference is within one standard error of itself, from the same resamples of the rows. On 30 rows the highest
        of a dozen accuracies is luck, and the later weights have learned more. So they have where no score was defined
        yet.
        """
        best = self.best_score
        if best is None or score > best:
            self.best_score, self.best_samples, self.validations_without_gain = score, samples.tolist(), 0
            return True
        self.validations_without_gain += 1
        if best == WORST:
            return True
        return bool(len(samples)) and best - score <= float(np.std(np.array(self.best_samples) - samples))


class Checkpoints:
    """The checkpoints of one phase of one run. Only rank 0 writes; every rank may read."""

    def __init__(self, storage: Storage, parts: tuple[str, ...], owner: Owner | None = None) -> None:
        self.storage = storage
        self.parts = parts
        self.owner = owner
        self._best: tuple[int, float, bytes] | None = None

    def save_last(
        self, progress: TrainProgress, model: nn.Module, losses: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write what an exact resume needs, then drop the checkpoint before it. A finished phase needs no optimizer.

        Reports that fill a piece move from ``progress`` into a file, which no later checkpoint writes again.
        """
        if self._best is not None:
            step, score, weights = self._best
            self._commit("best", step, {"model.safetensors": weights}, {"score": score})
            self._best = None
        while len(progress.history) >= PIECE:
            if self.owner is not None:
                self.owner.check()
            piece = json.dumps(progress.history[:PIECE]).encode()
            self.storage.write_bytes(piece, *self.parts, piece_name(progress.num_pieces))
            progress.num_pieces += 1
            progress.history = progress.history[PIECE:]
        state: dict[str, Any] = {"progress": vars(progress)}
        files = {}
        if not progress.finished:
            files = {"model.safetensors": to_bytes(model), "losses.safetensors": to_bytes(losses)}
            state["optimizer"] = optimizer.state_dict()
        self._commit("last", progress.step, {**files, "state.pt": _torch_bytes(state)}, {})

    def keep_best(self, step: int, score: float, model: nn.Module) -> None:
        """Keep these weights, those that count so far, in memory; the next ``save_last`` writes them.

        A resume begins at ``last``, so a validation after it is made again: writing at once would save nothing.
        """
        self._best = (step, score, to_bytes(model))

    def load_last(self, model: nn.Module, losses: nn.Module, optimizer: torch.optim.Optimizer) -> TrainProgress | None:
        """Restore model, losses and optimizer and return the progress; None where nothing was saved.

        Of a finished phase the weights that count are those of ``load_best``.
        """
        files = self._read("last")
        if files is None:
            return None
        state = self._state(files)
        progress = TrainProgress(**state["progress"])
        if not progress.finished:
            model.load_state_dict(safetensors.torch.load(files["model.safetensors"]))
            losses.load_state_dict(safetensors.torch.load(files["losses.safetensors"]))
            optimizer.load_state_dict(state["optimizer"])
        return progress

    def history(self) -> list[dict[str, Any]]:
        """Return the reports up to the last checkpoint."""
        files = self._read("last")
        if files is None:
            return []
        progress = TrainProgress(**self._state(files)["progress"])
        pieces = [self.storage.read_json(*self.parts, piece_name(i)) for i in range(progress.num_pieces)]
        return [*itertools.chain(*pieces), *progress.history]

    def load_best(self, model: nn.Module) -> float:
        """Put the best weights into ``model`` and return their score."""
        files = self._read("best")
        if files is None:
            raise ArtifactError(f"{'/'.join(self.parts)} holds no best checkpoint; run it again to train anew.")
        model.load_state_dict(safetensors.torch.load(files["model.safetensors"]))
        return float(self.storage.read_json(*self.parts, "best.json")["score"])

    def clear(self) -> None:
        """Remove the phase's checkpoints (its result is an artefact by then)."""
        if self.owner is not None:
            self.owner.check()
        self.storage.delete(*self.parts)

    def _commit(self, kind: str, step: int, files: dict[str, bytes], extra: dict[str, Any]) -> None:
        if self.owner is not None:
            self.owner.check()
        folder = f"{kind}-{step:08d}"
        for name, content in files.items():
            self.storage.write_bytes(content, *self.parts, folder, name)
        pointer = {"folder": folder, "step": step, "bytes": {n: len(c) for n, c in files.items()}, **extra}
        self.storage.write_json(pointer, *self.parts, f"{kind}.json")
        for name in self.storage.list(*self.parts):
            if name.startswith(f"{kind}-") and name != folder:
                self.storage.delete(*self.parts, name)

    @staticmethod
    def _state(files: dict[str, bytes]) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(io.BytesIO(files["state.pt"]), weights_only=True, map_location="cpu")
        return state

    def _read(self, kind: str) -> dict[str, bytes] | None:
        if not self.storage.exists(*self.parts, f"{kind}.json"):
            return None
        pointer = self.storage.read_json(*self.parts, f"{kind}.json")
        files = {name: self.storage.read_bytes(*self.parts, pointer["folder"], name) for name in pointer["bytes"]}
        for name, content in files.items():
            if len(content) != pointer["bytes"][name]:
                raise ArtifactError(
                    f"{self.storage.show(*self.parts, pointer['folder'], name)} has {len(content)} bytes, not "
                    f"{pointer['bytes'][name]}: it was damaged. Delete {self.storage.show(*self.parts)} to train anew."
                )
        return files


def piece_name(index: int) -> str:
    return f"history-{index:05d}.json"


def to_bytes(module: nn.Module) -> bytes:
    """Return the state dict as safetensors; tensors that share memory are stored each for itself."""
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        state[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return safetensors.torch.save(state)


def _torch_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
