"""Training rows and a small corpus with bad rows; the model comes from tests/tiny.py."""

from pathlib import Path

import pytest

from rematch_ray.data.schema import Item, items_to_table, samples_to_table, write_parquet
from tests.tiny import COLOURS, png, text_sample

GOOD_ROWS = 60
BAD_ROWS = {"truncated": png()[:40], "text": b"not an image", "empty": b""}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files: 60 good rows of image, text, both or two images, and 3 that cannot be embedded."""
    folder = tmp_path_factory.mktemp("corpus")
    items = []
    for number in range(GOOD_ROWS):
        image = png(COLOURS[number % 8], 32 + 16 * (number % 2))
        other = png(COLOURS[(number + 3) % 8], 48)
        forms = ([image], [f"document {number}"], [f"photo {number}", image], [image, "and", other])
        parts = forms[number % 4]
        source = "photos" if number % 2 else "notes"
        payload = {"name": f"name {number}", "size": {"width": number}}
        items.append(Item.of(*parts, id=f"d{number}", source=source, payload=payload))
    kind = items_to_table(items).schema.field("payload").type
    bad = [Item.of(data, id=name, source="photos") for name, data in BAD_ROWS.items()]
    write_parquet(
        items_to_table([*items[:20], *bad[:2], *items[20:30]], kind), folder / "a.parquet"
    )
    write_parquet(items_to_table([*items[30:], bad[2]], kind), folder / "b.parquet")
    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sources of training rows, 48 pictures and 32 texts, in two files each."""
    folder = tmp_path_factory.mktemp("train")
    paths = {}
    for source, count in (("photos", 48), ("notes", 32)):
        rows = [
            text_sample(n, negatives=1, source=source, image=source == "photos")
            for n in range(count)
        ]
        paths[source] = folder / source
        write_parquet(samples_to_table(rows[:20]), paths[source] / "a.parquet")
        write_parquet(samples_to_table(rows[20:]), paths[source] / "b.parquet")
    return paths
