"""Images that a row only refers to: data URIs, paths below a root, URLs of allowed hosts.

A reference comes from a data set that somebody else may have written: it never reaches outside the
root, and no host that was not named. It knows nothing of tables or formats. Middle floor.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from rematch_ray.data.media import ITEM_IMAGES
from rematch_ray.data.readers.batches import is_text
from rematch_ray.data.readers.files import is_uri, join, read_bytes
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.web import fetch
from rematch_ray.errors import UserError

# more than any image that media.py would decode; keeps one row from filling the memory
IMAGE_BYTES = 256 * 2**20
# of one item, all images together
ITEM_BYTES = IMAGE_BYTES
_WEB = re.compile(r"https?:", re.IGNORECASE)


def with_images(
    parts: Iterable[Mapping[str, Any]], settings: ReaderSettings, folder: str
) -> list[dict[str, Any]]:
    """Parts whose images have their bytes.

    Args:
        parts: rows of `PART_TYPE`; image parts may have a `uri` instead of `image`.
        settings: where images may come from.
        folder: what relative paths start from unless `image_root` is set.

    Returns:
        The parts, in order. The uri stays, except where it is the data itself.

    Raises:
        UserError: an image is missing, or may not be read; names the reference. Or there are too
            many of them.
        StorageError: storage fails at one.
    """
    given = [dict(part) for part in parts]
    num_images = sum(part.get("kind") == "image" for part in given)
    if num_images > ITEM_IMAGES:
        raise UserError(f"an item of {num_images} images; at most {ITEM_IMAGES} are read")
    size = 0
    for part in given:
        _open(part, settings, folder)
        size += len(part.get("image") or b"")
        if size > ITEM_BYTES:
            raise UserError(f"the images of an item have more than {ITEM_BYTES} bytes together")
    return given


def load_image(reference: str, settings: ReaderSettings, folder: str) -> bytes:
    """The bytes that a reference stands for.

    Args:
        reference: a data URI, an https URL, or a path relative to the root.
        settings: `image_root`, `url_hosts` and their limits.
        folder: the root unless `image_root` is set.

    Raises:
        UserError: it is missing, empty, too large, outside the root or on a host not allowed.
        StorageError: storage fails at it.
    """
    if reference[:5].lower() == "data:":
        content = _data_uri(reference)
    elif _WEB.match(reference):
        content = fetch(
            reference,
            hosts=settings.url_hosts,
            limit_bytes=settings.url_bytes,
            seconds=settings.url_seconds,
        )
    else:
        path = path_inside(reference, settings.image_root or folder)
        content = read_bytes(path, limit=IMAGE_BYTES)
    if not content:
        raise UserError(f"image {shown(reference)} is empty")
    return content


def path_inside(reference: str, root: str) -> str:
    """The path of a reference below a root, which it cannot leave, through links neither.

    Args:
        reference: a relative path, or a whole path or URI that begins with the root.
        root: a folder or URI.

    Raises:
        UserError: it would lie outside.

    >>> path_inside("a/./b.png", "s3://bucket/images")
    's3://bucket/images/a/b.png'
    """
    if not root:
        raise UserError(f"image {shown(reference)}: no image_root is set that it could start from")
    base = root.rstrip("/")
    name = reference.removeprefix(f"{base}/")
    inside = posixpath.normpath(name)
    if (
        not name
        or "\0" in name
        or is_uri(name)
        or inside.startswith(("/", "../"))
        or inside in ("..", ".")
    ):
        raise _outside(reference, root)
    if not is_text(name):
        raise UserError(f"image {shown(reference)} cannot be found: its name is not UTF-8")
    path = join(base, inside)
    if not is_uri(path):
        try:
            real = Path(path).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
            raise UserError(f"image {shown(reference)} cannot be found: {error}") from error
        if not real.is_relative_to(Path(base or "/").resolve()):
            raise _outside(reference, root)
    return path


def shown(reference: str) -> str:
    """A reference short enough for a message."""
    return repr(reference if len(reference) <= 120 else f"{reference[:117]}...")


def _open(part: dict[str, Any], settings: ReaderSettings, folder: str) -> None:
    uri = part.get("uri")
    if part.get("kind") != "image" or part.get("image") is not None or not uri:
        return
    part["image"] = load_image(uri, settings, folder)
    if uri[:5].lower() == "data:":
        part["uri"] = None


def _data_uri(reference: str) -> bytes:
    head, comma, body = reference.partition(",")
    if not comma or len(body) > 2 * IMAGE_BYTES:
        raise UserError(f"image {shown(reference)} is no data URI of a size that is read")
    content = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise UserError(f"image {shown(reference)} is not base64: {error}") from error


def _outside(reference: str, root: str) -> UserError:
    return UserError(
        f"image {shown(reference)} lies outside {root}; images are read from below image_root only"
    )
