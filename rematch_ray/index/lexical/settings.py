"""What the lexical index of an index covers: which payload fields, cut into terms how, scored how.

Stored with every generation, so that what is added, merged or searched later follows what the build
chose. Knows payloads, nothing of postings. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from rematch_ray.config_file import Settings
from rematch_ray.errors import UserError, did_you_mean
from rematch_ray.index.lexical.tokeniser import Tokeniser, tokeniser_name

DEFAULT_FIELD = "text"
_TEXT = r"(large_)?string(_view)?"
# as Arrow spells them; a field in which no document has a value yet is of type null
_TEXT_TYPE = re.compile(
    rf"{_TEXT}|\w*list\w*<\w+: {_TEXT}( not null)?>(\[\d+\])?|dictionary<values={_TEXT},.*|null"
)


class LexicalSettings(Settings):
    """The lexical index: what it reads and how it scores."""

    fields: tuple[str, ...] = Field(min_length=1)
    """Payload fields whose texts make a document's text, nested ones by dotted name."""
    stemmer: str | None = None
    """Snowball language whose endings are cut off (english, german); null = words as they stand."""
    k1: float = Field(default=1.2, ge=0, allow_inf_nan=False)
    """How much a term counts that occurs again and again; 0 = as if it occurred once."""
    b: float = Field(default=0.75, ge=0, le=1)
    """How much a long text counts less; 0 = not at all."""

    def tokeniser(self) -> Tokeniser:
        """What cuts texts into terms; one per thread."""
        return Tokeniser(self.stemmer)

    def text_of(self, payload: Mapping[str, Any]) -> str:
        r"""The text of a document: its fields' texts, one after another.

        >>> LexicalSettings(fields=("a.b", "tags")).text_of({"a": {"b": "x"}, "tags": ["y", 1]})
        'x\ny'
        """
        return "\n".join(text for field in self.fields for text in _texts(payload, field))

    def stored(self) -> dict[str, Any]:
        """Plain JSON types, with the name of what makes the terms."""
        return {**self.model_dump(mode="json"), "tokeniser": tokeniser_name(self.stemmer)}


def choose_lexical(
    wanted: Sequence[str] | LexicalSettings | None, fields: Mapping[str, str]
) -> LexicalSettings | None:
    """What a build indexes.

    Args:
        wanted: settings, or names of fields; None takes `text` where there is such a text field,
            and an empty sequence nothing.
        fields: payload fields and their Arrow types.

    Returns:
        Checked settings, or None for no lexical index.

    Raises:
        UserError: a field that is not there, or holds no text.

    >>> choose_lexical(None, {"text": "string"}).fields, choose_lexical(None, {"n": "int64"})
    (('text',), None)
    """
    if wanted is None:
        kind = fields.get(DEFAULT_FIELD, "")
        return LexicalSettings(fields=(DEFAULT_FIELD,)) if _TEXT_TYPE.fullmatch(kind) else None
    if not isinstance(wanted, LexicalSettings):
        if isinstance(wanted, str):
            wanted = [wanted]
        if not wanted:
            return None
        wanted = LexicalSettings(fields=tuple(dict.fromkeys(wanted)))
    texts = [field for field, kind in fields.items() if _TEXT_TYPE.fullmatch(kind)]
    for field in wanted.fields:
        if field not in fields:
            raise UserError(f"no payload field '{field}' to index; {did_you_mean(field, texts)}")
        if field not in texts:
            raise UserError(
                f"payload field '{field}' is {fields[field]}, no text; {did_you_mean(field, texts)}"
            )
    wanted.tokeniser()  # refuses an unknown stemmer before anything is written
    return wanted


def read_lexical(stored: Mapping[str, Any] | None, where: object) -> LexicalSettings | None:
    """Settings of a generation; None where it has no lexical index.

    Args:
        stored: what `stored()` gave.
        where: the index, for the message.

    Raises:
        UserError: this software would cut texts into other terms than those that are stored.
    """
    if stored is None:
        return None
    settings = LexicalSettings.model_validate({k: v for k, v in stored.items() if k != "tokeniser"})
    here = tokeniser_name(settings.stemmer)
    if stored["tokeniser"] != here:
        raise UserError(
            f"the texts of {where} were cut into terms by '{stored['tokeniser']}', this software "
            f"has '{here}': build the index again, or install what built it"
        )
    return settings


def _texts(payload: Mapping[str, Any], field: str) -> list[str]:
    value: Any = payload
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    members = value if isinstance(value, list) else [value]
    return [member for member in members if isinstance(member, str)]
