"""The base of all parameters."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def _title(name: str, info: object) -> str:
    """Return a field's title in the form: ``holdout_uri`` becomes hold-out URI."""
    words = [_WORDS.get(word, word) for word in name.removeprefix("n_").split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


_WORDS = {"uri": "URI", "mib": "MiB", "holdout": "hold-out", "prob": "probability"}


class Params(BaseModel):
    """Base of all parameters; unknown names and infinite numbers are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        field_title_generator=_title,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the text below a field is its description in the form
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema for the form: descriptions on one line, a kind as the title of its tab."""
        schema = handler(core_schema)
        form = handler.resolve_ref_schema(schema)
        for name, field in form.get("properties", {}).items():
            if "description" in field:
                field["description"] = " ".join(field["description"].split())
            if name == "kind" and "default" in field:
                form["title"] = field["default"]
        return schema

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return params that a checkpoint keeps; fields of earlier versions that have gone are left out."""
        return cls(**{name: value for name, value in stored.items() if name in cls.model_fields})
