"""What every section of the configuration is made of: the frozen base class, and types that refuse what looks alike."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from refusal.untrusted.text import usable_name, whole_characters


def no_truth_value(value: Any) -> Any:
    """Refuse true, which Python takes for 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_expected", "a number is expected")
    return value


def listed_once(value: Any) -> Any:
    """Refuse a list in which something stands twice."""
    twice = [item for item in value if value.count(item) > 1] if isinstance(value, tuple) else []
    if twice:
        raise ValueError(f"{str(twice[0])!r} is listed twice")
    return value


Int = Annotated[int, BeforeValidator(no_truth_value)]
Number = Annotated[float, BeforeValidator(no_truth_value)]
AutoInt = Literal["auto"] | Annotated[Int, Field(ge=1)]
Seed = Annotated[Int, Field(ge=0, le=2**32 - 1)]
Text = Annotated[str, Field(min_length=1), AfterValidator(usable_name)]
Prose = Annotated[str, AfterValidator(whole_characters)]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        """Take a section of which every key is commented out as an empty one."""
        return {} if value is None else value
