"""Which layer of the teacher stands for which layer of the student: to start from, and to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

from raydistill.config.losses import LayerChoice, LayerLossSection
from raydistill.config.tree import Config
from raydistill.errors import ConfigError


def choose_layers(num_student: int, num_teacher: int, layer_types: Sequence[str] | None = None) -> tuple[int, ...]:
    """Return the teacher layers (from 0) a student starts from: spread evenly, first and last among them.

    12 to 6 gives DistilBERT's 0, 2, 4, 7, 9, 11; one layer is the first, the one that knows the embeddings. With
    ``layer_types`` (ModernBERT) a neighbour with global attention is preferred. Raises ConfigError.
    """
    if num_student > num_teacher:
        raise ConfigError(
            f"A student of {num_student} layers cannot start from the {num_teacher} layers of its teacher. "
            f"Set student.num_layers to at most {num_teacher}, or student.start to random."
        )
    if num_student < 1:
        raise ConfigError(
            f"A student needs at least one layer, not {num_student}. Set student.num_layers to 1 or more."
        )
    even = tuple(_rounded(i * (num_teacher - 1), max(num_student - 1, 1)) for i in range(num_student))
    return even if layer_types is None else _prefer_global(even, layer_types)


def _prefer_global(even: tuple[int, ...], layer_types: Sequence[str]) -> tuple[int, ...]:
    """Move each choice to an adjacent layer with full attention, as long as the choices stay in order."""
    chosen: list[int] = []
    for position, layer in enumerate(even):
        before = chosen[-1] if chosen else -1
        after = even[position + 1] if position + 1 < len(even) else len(layer_types)
        near = [i for i in (layer, layer - 1, layer + 1) if before < i < after and layer_types[i] == "full_attention"]
        chosen.append(near[0] if near else layer)
    return tuple(chosen)


def layer_map(
    layers: LayerChoice | Sequence[Sequence[int]], num_student: int, num_teacher: int, first: int = 0
) -> tuple[tuple[int, int], ...]:
    """Return pairs (student, teacher) of hidden states to compare; 0 is the embeddings, i the output of layer i.

    ``uniform``: each student layer with the teacher layer at the same share of the depth (TinyBERT's g(m) = k·m, for
    any depths). ``last``, ``first``: the outputs of the last, the first layers of both. ``auto``: what stands for the
    pairs by similarity (``closest_layers``) until both models are there, uniform and the embeddings. Or pairs by hand.
    ``first``: 1 where embeddings are no layer. Raises ConfigError for pairs outside the models.
    """
    uniform = tuple((m, max(1, _rounded(m * num_teacher, num_student))) for m in range(1, num_student + 1))
    match layers:
        case "auto":
            return uniform if first else ((0, 0), *uniform)
        case "uniform":
            return uniform
        case "last":
            return ((num_student, num_teacher),)
        case "first":
            return ((1, 1),)
        case str():
            raise ConfigError(
                f"Unknown layer map {layers!r}. Known: auto, uniform, last, first, or pairs [student, teacher]."
            )
    return _checked_pairs(layers, num_student, num_teacher)


def closest_layers(similarities: Sequence[Sequence[float]]) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student, teacher) of hidden states with the largest sum of ``similarities`` among those that
    never go back to an earlier teacher layer; the embeddings, 0, are each other's. Of equal sums the earlier layers."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * len(similarities[0])
    for row in similarities[1:]:
        reached: list[tuple[float, tuple[int, ...]]] = []
        for layer in range(1, len(row)):
            total, chosen = max(best[1 : layer + 1], key=lambda one: one[0])
            reached.append((total + row[layer], (*chosen, layer)))
        best = [(0.0, ()), *reached]
    _, chosen = max(best[1:], key=lambda one: one[0])
    return ((0, 0), *enumerate(chosen, 1))


def layer_maps(config: Config, num_student: int, num_teacher: int) -> dict[str, list[list[int]]]:
    """Return the pairs (student, teacher) of hidden states of every loss that maps layers."""
    return {
        f"stages.{stage}.losses.{name}": [
            list(pair) for pair in layer_map(loss.layers, num_student, num_teacher, loss.first_layer)
        ]
        for stage, settings in config.stages.items()
        for name, loss in settings.losses.items()
        if isinstance(loss, LayerLossSection)
    }


def _checked_pairs(pairs: Sequence[Sequence[int]], num_student: int, num_teacher: int) -> tuple[tuple[int, int], ...]:
    if not pairs:
        raise ConfigError("The layer map has no pairs. Give at least one pair [student, teacher], or auto.")
    checked = []
    for pair in pairs:
        if len(pair) != 2 or not (0 <= pair[0] <= num_student and 0 <= pair[1] <= num_teacher):
            raise ConfigError(
                f"The layer map has the pair {list(pair)}, but a pair is [student, teacher] with 0 (embeddings) to "
                f"{num_student} for the student and 0 to {num_teacher} for the teacher."
            )
        checked.append((pair[0], pair[1]))
    return tuple(checked)


def _rounded(numerator: int, denominator: int) -> int:
    """Round half up: Python's round sends 0.5 and 2.5 down, which would pull layers towards the embeddings."""
    return (2 * numerator + denominator) // (2 * denominator)
