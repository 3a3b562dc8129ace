"""What every part of the config tree is built on: frozen, strict sections, and the names that users choose."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raydistill import rules

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
"""A name the user chooses; it becomes part of dotted names, metric keys and folder names."""


class Section(BaseModel):
    """Base of every part of the tree: unknown names and later changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def check(self) -> Self:
        rules.refuse(self.mistakes())
        return self

    def mistakes(self) -> list[rules.Mistake]:
        """What is wrong between fields that are each valid."""
        return []
