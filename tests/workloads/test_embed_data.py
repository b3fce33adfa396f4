"""What an embedding job says of its data."""

from pathlib import Path

from rematch_ray.data.readers.formats import list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.workloads.embed_data import read_as
from tests.data.readers.layouts import write_image, write_rows
from tests.tiny import png


def test_files_are_counted_once_in_however_many_pieces(tmp_path: Path) -> None:
    for number in range(7):
        write_image(tmp_path / "images" / f"{number}.png", png("red"))
    write_rows(tmp_path / "rows.jsonl", [{"text": "a"}] * 100)
    units = list_data(tmp_path / "images", ReaderSettings(unit_files=3))
    assert [len(unit.members) for unit in units] == [3, 3, 1]
    lines = list_data(tmp_path / "rows.jsonl", ReaderSettings(unit_bytes=100))
    assert len(lines) > 1
    assert read_as(units, detected=True) == "reading 7 files as images (detected)"
    told = "reading 7 files as images, 1 file as jsonl (as named)"
    assert read_as([*units, *lines], detected=False) == told
