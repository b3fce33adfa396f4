"""Endings of the names of files that several readers know. Middle floor."""

from rematch_ray.data.readers.lines import COMPRESSED

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
TABLES = (".parquet", *(f"{table}{end}" for table in _LINES for end in ("", *COMPRESSED)))
