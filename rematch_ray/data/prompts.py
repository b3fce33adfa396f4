"""The fixed wording around an item, and the token layout `[P][S][E][M]` that it produces.

P is the chat header, identical for every row; S the item itself behind a side marker; E the end of
the turn; M the meta tokens, which are not text. Knows a tokenizer and nothing of images' pixels,
models or losses. Middle floor.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rematch_ray.errors import UserError

Side = Literal["query", "document"]


class Template(BaseModel):
    """Every string that surrounds what the user gives; stored with the model and hashed.

    Attributes:
        header: P, up to the start of the user turn; no task wording.
        query_marker: start of S on the query side.
        document_marker: start of S on the document side.
        vision_start: token before an image's placeholders.
        image: the placeholder token, repeated once per visual token.
        vision_end: token after an image's placeholders.
        end: E, the end of the user turn and the assistant header.
        match_instruction: I, the matching stage's question, once per pair of items.
        answer: A_k, what stands before the Yes/No token of each view.
        yes: the answer token of a match.
        no: the answer token of a mismatch.
        match_gap: positions (not tokens) left free between P and S, where I stands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: str = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    query_marker: str = "Query: "
    document_marker: str = "Document: "
    vision_start: str = "<|vision_start|>"
    image: str = "<|image_pad|>"
    vision_end: str = "<|vision_end|>"
    end: str = "<|im_end|>\n<|im_start|>assistant\n"
    match_instruction: str = "Does the document match the query? Answer Yes or No."
    answer: str = "\nYes or No?<|im_end|>\n<|im_start|>assistant\n"
    yes: str = "Yes"
    no: str = "No"
    match_gap: int = Field(default=32, ge=1)

    @property
    def digest(self) -> str:
        """SHA-256 of the template's canonical JSON."""
        text = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def marker(self, side: Side) -> str:
        """The marker that opens S on one side."""
        return self.query_marker if side == "query" else self.document_marker


class PromptTokens:
    """A template's fixed strings as token ids of one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: the strings.

    Raises:
        UserError: Yes or No is not one token, a vision token is unknown to the tokenizer, nothing
            stands before the answer, or the matching instruction does not fit into the gap.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self.header = self.text(template.header)
        self.end = self.text(template.end)
        self.match_instruction = self.text(template.match_instruction)
        self.answer = self.text(template.answer)
        self.vision_start = self._single("vision_start", template.vision_start)
        self.image = self._single("image", template.image)
        self.vision_end = self._single("vision_end", template.vision_end)
        self.yes = self._single("yes", template.yes)
        self.no = self._single("no", template.no)
        if not self.answer:
            raise UserError(
                f"template.answer is {template.answer!r}, no token at all: the matching stage "
                "reads Yes or No behind its last one; give a text such as 'Yes or No?'"
            )
        pad = tokenizer.pad_token_id
        if pad is None and not self.end:
            raise UserError(
                f"template.end is {template.end!r}, no token at all, and this tokenizer has no pad "
                "token, in whose place its first one stands: give either"
            )
        self.pad: int = pad if pad is not None else self.end[0]
        if len(self.match_instruction) > template.match_gap:
            raise UserError(
                f"template.match_instruction is {len(self.match_instruction)} tokens long but "
                f"template.match_gap leaves {template.match_gap} positions: raise the gap or "
                "shorten it"
            )

    def text(self, text: str) -> list[int]:
        """Token ids of one of our own strings; special tokens are read as such."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def user_text(self, text: str) -> list[int]:
        """Token ids of text from outside; it cannot produce a chat or vision token.

        `<|` opens every special token of the supported families, so it is split apart.
        """
        return self.text(text.replace("<|", "< |"))

    def _single(self, name: str, text: str) -> int:
        ids = self.text(text)
        if len(ids) != 1:
            raise UserError(
                f"template.{name} is {text!r}, which this tokenizer splits into {len(ids)} tokens; "
                "it must be exactly one"
            )
        return ids[0]
