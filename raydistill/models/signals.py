"""What can be read off a model for a row: a signal knows its name, its layer, and how many numbers it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from raydistill.errors import ConfigError
from raydistill.models.fields import embedding_width
from raydistill.models.head import (
    EMBEDDING,
    MASKED,
    NUM_SIDES,
    OBJECTS,
    is_focal,
    kind_of_head,
    num_queries,
    num_scores,
    vector_width,
)

_LAYER = re.compile(r"(\w+)\[(\d+)\]")
PREDICTIONS = ("logits", "log_marginals", "transitions", "answers")
SEQUENCES, TOP = "k_best", "top_logits"
OF_OUTPUTS = (*PREDICTIONS, "gradients")
PROJECTIONS = ("queries", "keys", "values")
OF_LAYERS = ("hidden_states", *PROJECTIONS)


class State(NamedTuple):
    """A hidden state of a model that reads pictures: its positions in each of them, and its width."""

    positions: int
    width: int


class Signal(str):
    """``logits``, ``gradients``, or ``hidden_states[i]``, ``queries[i]``, ``keys[i]``, ``values[i]``; it is its own
    text, as keys of dicts, files and plans have it. Of a CRF (``models.crf``) ``log_marginals``, ``k_best[k]`` and
    ``transitions``, too; of a masked language model (``models.vocabulary``) ``answers`` and ``top_logits[k]``.

    Hidden states count from 0, the embeddings, to the output of the last layer; projections belong to layer 1 to the
    last. Raises ConfigError for anything else.
    """

    def __new__(cls, text: str) -> Signal:
        made = super().__new__(cls, text)
        known = made.layer is None or made.layer > 0 or made.name not in (*PROJECTIONS, SEQUENCES, TOP)
        indexed = (*OF_LAYERS, SEQUENCES, TOP)
        if made.name not in (OF_OUTPUTS if made.layer is None else indexed) or not known:
            names = ", ".join([*OF_OUTPUTS, *(f"{name}[i]" for name in indexed)])
            raise ConfigError(f"Unknown signal {text!r}. Known signals: {names}; projections count from 1.")
        return made

    @classmethod
    def of(cls, name: str, layer: int) -> Signal:
        return cls(f"{name}[{layer}]")

    @cached_property
    def name(self) -> str:
        found = _LAYER.fullmatch(self)
        return found[1] if found else str(self)

    @cached_property
    def layer(self) -> int | None:
        """None for what has no layer; of ``k_best`` and ``top_logits`` k."""
        found = _LAYER.fullmatch(self)
        return int(found[2]) if found else None

    @property
    def is_token_level(self) -> bool:
        """Whether it has one row of numbers a token; otherwise it has one a row of the data, or a unit of it."""
        return not self.is_prediction

    @property
    def is_state(self) -> bool:
        return self.name == "hidden_states"

    @property
    def is_prediction(self) -> bool:
        """Whether it is made from the model's logits."""
        return self.name in (*PREDICTIONS, SEQUENCES, TOP)

    @property
    def dtype(self) -> str:
        """In which it is kept: row-level signals are small, and differences of them count."""
        return "float16" if self.is_token_level else "float32"

    def width(self, config: Any, states: Sequence[State] = ()) -> int:
        """Numbers a token, or a row, of a model with this config; ``states``: its hidden states, where it reads
        pictures. Raises ConfigError beyond the model's layers."""
        if self == ANSWERS:
            return 3
        if self.name in PREDICTIONS:
            kind = kind_of_head(config)
            named = len(config.id2label or ())
            if kind == OBJECTS:
                return num_queries(config) * (num_scores(named, is_focal(config)) + NUM_SIDES)
            return vector_width(config) if kind == EMBEDDING else config.vocab_size if kind == MASKED else named
        if self.layer is None:
            return embedding_width(config)
        if self.name in (SEQUENCES, TOP):
            return 2 * self.layer + (self.name == TOP)
        if self.is_state and states:
            return self._state(states).width
        if self.layer > config.num_hidden_layers:
            raise ConfigError(f"There is no {self}: the model has {config.num_hidden_layers} layers.")
        size = int(config.hidden_size)
        if self.name not in ("keys", "values"):
            return size
        heads = config.num_attention_heads
        return size * (getattr(config, "num_key_value_heads", None) or heads) // heads

    def num_bytes(self, config: Any, num_units: int, num_tokens: int, states: Sequence[State] = ()) -> int:
        """What it takes in storage of rows that have so many predictions (one a row, or several) and tokens."""
        width = self.width(config, states)
        return width * (2 * self.num_positions(num_units, num_tokens, states) if self.is_token_level else 4 * num_units)

    def num_positions(self, num_rows: int, num_tokens: int, states: Sequence[State] = ()) -> int:
        """Positions that one a token has in so many rows, with so many tokens: these; of a map as many a picture."""
        return num_rows * self._state(states).positions if self.is_state and states else num_tokens

    def _state(self, states: Sequence[State]) -> State:
        assert self.layer is not None
        if self.layer >= len(states):
            last = len(states) - 1
            raise ConfigError(f"There is no {self}: the model has hidden_states[0] to hidden_states[{last}].")
        return states[self.layer]


LOGITS = Signal("logits")
GRADIENTS = Signal("gradients")
"""Of a combination of the logits with respect to the token embeddings, of length 1 over a row; see models.gradients."""
LOG_MARGINALS = Signal("log_marginals")
TRANSITIONS = Signal("transitions")
"""A model's own, not a row's: it is never recorded."""
ANSWERS = Signal("answers")
"""Of each unit, (M, 3): log-probability of the right token, id of the likeliest one, and its log-probability."""
UNITS = "unit_positions"
"""Among a batch's inputs where rows have several predictions: positions (M,) of their tokens in the flattened (B · L)
batch, row after row."""
BEGINS = "row_begins"
"""Beside it, whether each row (B,) is the beginning of its text, not a later window of it."""
LABELS = "unit_labels"
"""Beside it, the right token of each unit, (M,), for whom ``answers`` are wanted."""
SECOND = "second_text"
"""Among a batch's inputs where rows are two texts that a model reads apart: where the second begins in its row,
(B,)."""
