"""The ``student`` section: the shape of the small model and what it starts from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from raydistill.config.losses import SequenceHead
from raydistill.config.section import Mistake, OrAuto, Section, type_of

STARTS = ("teacher_layers", "teacher_embeddings", "random")
"""What a student starts from, where it is no checkpoint."""


class StudentSection(Section):
    """What students of all types have."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout everywhere in the student; 0 by default, as the teacher's targets regularise."""
    head: SequenceHead = "softmax"
    """Of a tagger of words. ``softmax``: each word has the label that is likeliest for it; ``crf``: a row has the
    likeliest sequence of labels, by a linear-chain CRF; ``constrained_crf``: one without an I- that lacks its B-."""


class EncoderStudent(StudentSection):
    """A smaller encoder: its shape and start; what is not set is as in the teacher."""

    type: Literal["encoder"] = "encoder"
    num_layers: OrAuto[Annotated[int, Field(ge=1)] | None] = "auto"
    """Transformer layers. None: as many as the teacher. ``auto``: half of these; as many, or as the checkpoint has, for
    a student of another width or start."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the hidden states, a multiple of ``num_heads``. None: the teacher's."""
    num_heads: int | None = Field(default=None, ge=1)
    """Attention heads. None: the teacher's, or as many as keep their width in a narrower student."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width inside the feed-forward blocks. None: in proportion to ``hidden_size``."""
    start: str = Field(default="teacher_layers", min_length=1)
    """``teacher_layers`` (copied, or sliced where the student is narrower), ``random``, or a checkpoint: a folder,
    ``pkg://package/path``, a hub name, or the student of an earlier run, ``run:KEY`` or ``models:/NAME@ALIAS``."""
    width_start: Literal["pca", "first"] = "pca"
    """What a narrower student keeps of its start: ``pca``, the principal components of the hidden states and the heads
    that matter most, on a sample of the training rows, with weights that make up for the rest; or the first entries."""
    teacher_layers: OrAuto[tuple[int, ...]] = "auto"
    """Which of the teacher's layers (from 0) the student starts from."""
    share_layers: int | None = Field(default=None, ge=0)
    """So many layers, and the embeddings, are the teacher's, in every stage: frozen, and not run in training, where the
    teacher's states behind them are read instead. 0: the embeddings alone."""

    @property
    def checkpoint(self) -> str | None:
        """The folder or hub name that the student starts from; None where it starts from its teacher, or at random."""
        return None if self.start in STARTS else self.start

    @property
    def keeps_part(self) -> bool:
        """Whether it may be narrower than what it starts from."""
        sizes = (self.hidden_size, self.num_heads, self.intermediate_size)
        return self.start != "random" and any(size is not None for size in sizes)

    @property
    def is_measured(self) -> bool:
        """Whether what it keeps is measured on training rows, where it is narrower than what it starts from."""
        return self.keeps_part and self.width_start == "pca"

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        width, heads, layers = self.hidden_size, self.num_heads, self.teacher_layers
        if width and heads and width % heads:
            found.append((("hidden_size",), f"{width} is not divisible by num_heads ({heads}); change one of them."))
        found += self._sharing()
        if layers == "auto":
            return found
        place = ("teacher_layers",)
        if not layers:
            found.append((place, "names no layer; write a list such as [0, 2], or auto."))
        if any(layer < 0 for layer in layers):
            found.append((place, f"layers count from 0, got {min(layers)}."))
        if layers and isinstance(self.num_layers, int) and len(layers) != self.num_layers:
            text = f"names {len(layers)} layers, but student.num_layers is {self.num_layers}; they must agree."
            found.append((place, text))
        if self.start != "teacher_layers":
            found.append((place, f"has no effect with start: {self.start}; remove one of the two."))
        return found

    def _sharing(self) -> list[Mistake]:
        """Layers can be shared where the student has them as they are."""
        shared, place = self.share_layers, ("share_layers",)
        if shared is None:
            return []
        found: list[Mistake] = []
        widths = [name for name in ("hidden_size", "num_heads", "intermediate_size") if getattr(self, name) is not None]
        if widths:
            found.append((place, f"layers of another width are not the teacher's; leave {' and '.join(widths)} out."))
        if self.checkpoint is not None:
            found.append((place, f"a student that starts from {self.start} has none of the teacher's layers."))
        if self.dropout:
            found.append((place, "what is recorded of shared layers has no dropout; set dropout to 0."))
        if isinstance(self.num_layers, int) and shared > self.num_layers:
            found.append((place, f"{shared} of {self.num_layers} layers (student.num_layers) cannot be shared."))
        if self.teacher_layers != "auto" and self.teacher_layers[:shared] != tuple(range(shared)):
            text = f"the first {shared} of teacher_layers must be 0 to {shared - 1}, got {list(self.teacher_layers)}."
            found.append((place, text))
        return found


class ConvStudent(StudentSection):
    """A light network: embeddings, depthwise-separable convolutions, a mean, a linear head."""

    type: Literal["conv"]
    num_layers: int = Field(default=3, ge=1)
    """Blocks of convolutions."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of embeddings and states. None: that of the teacher's embeddings."""
    kernel_size: int = Field(default=5, ge=1)
    """Tokens that a block looks at, an odd number: the one in the middle and its neighbours."""
    start: Literal["teacher_embeddings", "random"] = "teacher_embeddings"
    """``teacher_embeddings`` (copied, or their principal components where the student is narrower), or ``random``."""

    @property
    def checkpoint(self) -> None:
        """It starts from its teacher, or at random."""

    def mistakes(self) -> list[Mistake]:
        if self.kernel_size % 2:
            return []
        near = f"{self.kernel_size - 1} or {self.kernel_size + 1}"
        return [(("kernel_size",), f"{self.kernel_size} has no token in the middle; write an odd number, {near}.")]


def student_type(given: Any) -> Any:
    """The type that a student's section names; an encoder is what one without a type means."""
    return type_of(given, "encoder")


Student = Annotated[
    Annotated[EncoderStudent, Tag("encoder")] | Annotated[ConvStudent, Tag("conv")],
    Discriminator(student_type),
]
