"""The data of an embedding job: its units, what they are in words, and whether they tell every
change. Top floor.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rematch_ray.data.readers.files import join
from rematch_ray.data.readers.formats import list_data
from rematch_ray.data.readers.parquet import NAME as OWN_FORMAT
from rematch_ray.data.readers.parquet import parquet_file
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Unit


def list_items(
    data: str | Path | Sequence[str | Path], reader: ReaderSettings | None
) -> list[Unit]:
    """List the data's units, local paths made absolute: workers run in directories of their own."""
    given = [data] if isinstance(data, str | Path) else list(data)
    paths = [p if "://" in str(p) else Path(p).expanduser().absolute() for p in given]
    return list_data(paths, reader, rows="items")


def read_as(units: Sequence[Unit], *, detected: bool) -> str:
    """What is read, for people: how many files in which format."""
    named: dict[str, set[str]] = {}
    grouped: Counter[str] = Counter()
    for unit in units:
        # the documents of MMEB-eval are those that the rows of several files name
        for piece in unit.options.get("pieces", (unit,)):
            files = named.setdefault(unit.format, set())
            # of several files in a piece none lies in another one: the millions of images of a
            # corpus are counted, not named
            if len(piece.members) > 1:
                grouped[unit.format] += len(piece.members)
            else:
                files.add(join(piece.path, *piece.members) if piece.members else piece.path)
    counts = {name: len(files) + grouped[name] for name, files in named.items()}
    told = ", ".join(
        f"{count} file{'s' if count > 1 else ''} as {name}" for name, count in counts.items()
    )
    return f"reading {told} ({'detected' if detected else 'as named'})"


def tells_every_change(units: Sequence[Unit]) -> bool:
    """Whether the files' stamps tell every change: ours can, unless they refer to other files."""
    if any(unit.format != OWN_FORMAT for unit in units):
        return False
    return not any(_refers(path) for path in dict.fromkeys(unit.path for unit in units))


def _refers(path: str) -> bool:
    """Whether one of our files has parts with a uri, or does not say in its footer."""
    with parquet_file(path) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema.endswith(".uri"):
                    stated = column.statistics
                    if stated is None or stated.null_count != column.num_values:
                        return True
    return False
