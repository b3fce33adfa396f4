"""How data is read: the format, which columns mean what, and where images may come from.

Every reader takes the same settings; one that a format does not use is refused (formats.py). It
does not know files or Arrow. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from rematch_ray.config_file import Settings
from rematch_ray.errors import did_you_mean

ROLES = ("id", "parent_id", "source", "text", "image", "payload")
SAMPLE_ROLES = ("anchor", "positive", "negative")
SEVERAL = ("text", "image", "payload", "negative")


class ReaderSettings(Settings):
    """How the files of a corpus or of a training source are read."""

    format: str | None = None
    """Name of the format; null = detected from the files."""
    columns: tuple[tuple[str, str], ...] = ()
    """Which column is what: `text=caption,image=img,id=key`, `+` between several, or a mapping."""
    image_root: str | None = None
    """Folder or URI that relative image paths start from; null = the folder of the data file."""
    corpus: str | None = None
    """File, folder or URI of the documents that training rows name by their ids."""
    corpus_copy: str | None = None
    """Folder on each machine for a copy of it by id; null = below the temporary folder."""
    max_negatives: int | None = Field(default=None, ge=0)
    """Negatives of a row whose documents are fetched, the first so many; null = all."""
    split: str | None = None
    """Split that is read of a data set; null = `train` (MMEB-train: `original`) or the only one."""
    part: Literal["corpus", "queries"] = "corpus"
    """What is read of a data set that holds both."""
    source: str | None = None
    """Name recorded as the source of rows that do not carry one."""
    url_hosts: tuple[str, ...] = ()
    """Hosts that images may be fetched from, over https only; empty = no host."""
    url_bytes: int = Field(default=20 * 2**20, gt=0)
    """Largest image that is fetched from a URL, in bytes."""
    url_seconds: float = Field(default=10.0, gt=0)
    """Seconds within which an image has to be fetched."""
    pdf_dpi: int = Field(default=144, gt=0, le=600)
    """Resolution at which a PDF page is drawn, in dots per inch."""
    pdf_pixels: int = Field(default=4_000_000, gt=0)
    """Most pixels of a drawn PDF page; a larger page is drawn at a lower resolution."""
    unit_bytes: int = Field(default=32 * 2**20, gt=0)
    """Bytes that one read task takes of files that are cut anywhere: JSONL, CSV, tars, images."""
    unit_files: int = Field(default=2000, gt=0)
    """Most images or PDF pages that one read task opens."""

    @field_validator("columns", mode="before")
    @classmethod
    def _pairs(cls, given: Any) -> Any:
        pairs = tuple(_split(given)) if isinstance(given, str | Mapping) else given
        if isinstance(pairs, tuple | list) and all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs
        ):
            _check(pairs)
        return pairs

    @field_validator("url_hosts", mode="before")
    @classmethod
    def _hosts(cls, given: Any) -> Any:
        hosts = [given] if isinstance(given, str) else given
        for host in hosts if isinstance(hosts, list | tuple) else ():
            if not isinstance(host, str) or not host or set(host) & set("/*@ "):
                raise ValueError(
                    f"{host!r} is not the name of a host; write images.example.org, without "
                    "https:// and without *"
                )
        return hosts

    def columns_for(self, role: str) -> tuple[str, ...]:
        """Names of the columns with a role, in the order given.

        >>> ReaderSettings(columns="text=title+body,id=key").columns_for("text")
        ('title', 'body')
        """
        return tuple(name for given, name in self.columns if given == role)


def _split(given: str | Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(given, Mapping):
        for role, names in given.items():
            yield from ((role, n) for n in ([names] if isinstance(names, str) else names or [""]))
        return
    for entry in filter(None, (piece.strip() for piece in given.split(","))):
        role, equals, names = entry.partition("=")
        if not equals:
            raise ValueError(f"{entry!r} is not of the form role=column, as in text=caption")
        yield from ((role.strip(), name.strip()) for name in names.split("+"))


def _check(pairs: tuple[tuple[str, str], ...] | list[list[str]]) -> None:
    roles = [role for role, _ in pairs]
    for role, name in pairs:
        if role not in (*ROLES, *SAMPLE_ROLES):
            known = did_you_mean(str(role), (*ROLES, *SAMPLE_ROLES))
            raise ValueError(f"{role!r} is no role of a column; {known}")
        if roles.count(role) > 1 and role not in SEVERAL:
            raise ValueError(f"{role} can be one column only; {' and '.join(SEVERAL)} may be more")
        # `payload=` alone means no payload
        if not name and role != "payload":
            raise ValueError(f"{role}= names no column")
