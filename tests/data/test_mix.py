"""A mix of VLM2Vec is read as sources, or refused by entry and key."""

from pathlib import Path

import pytest

from rematch_ray.data.mix import MixSettings, read_mix
from rematch_ray.errors import UserError

VIDEO = "videos: {dataset_parser: llavahound_caption, dataset_path: a.jsonl, weight: 5}\n"
MIX = """\
CIRR:
    dataset_parser: mmeb
    dataset_name: TIGER-Lab/MMEB-train
    subset_name: CIRR
    dataset_split: diverse_instruction
    image_dir: vlm2vec_train/MMEB-train/image
    num_sample_per_subset: 30000
    weight: 0.5
colpali_train_set:
    dataset_parser: vidore
    dataset_name: vidore/colpali_train_set
    weight: 10
visrag-indomain:
    dataset_parser: visrag
    dataset_path: /data/visrag.parquet
    global_dataset_name: VisRAG-Indomain-data
    num_rows: 100_000
    num_sample_per_subset: 200_000
    weight: 12
"""


def mix(folder: Path, text: str, **changes: object) -> MixSettings:
    (folder / "mix.yaml").write_text(text)
    return MixSettings(**{"path": folder / "mix.yaml", "root": "/root", **changes})


def test_every_data_set_becomes_a_source(tmp_path: Path) -> None:
    cirr, pages, visrag = read_mix(mix(tmp_path, MIX))
    told = cirr.model_dump(exclude_defaults=True)
    assert told == {
        "name": "CIRR",
        "path": "/root/TIGER-Lab/MMEB-train/CIRR",
        "format": "mmeb",
        "split": "diverse_instruction",
        "image_root": "/root/vlm2vec_train/MMEB-train/image",
        "weight": 0.5,
        "max_rows": 30000,
    }
    assert (pages.path, pages.format, pages.weight) == (
        "/root/vidore/colpali_train_set",
        "pages",
        10,
    )
    assert (visrag.path, visrag.max_rows) == ("/data/visrag.parquet", 100_000)
    assert visrag.reader.source == "VisRAG-Indomain-data"


def test_videos_are_refused_unless_they_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"videos: dataset_parser 'llavahound_caption' is not read"):
        read_mix(mix(tmp_path, MIX + VIDEO))
    assert len(read_mix(mix(tmp_path, MIX + VIDEO, leave_out=("videos",)))) == 3
    with pytest.raises(UserError, match=r"leave_out names 'video', .* did you mean videos\?"):
        read_mix(mix(tmp_path, MIX + VIDEO, leave_out=("video",)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {dataset_parser: mmeb, dataset_name: x, wieght: 1}", r"wieght: .* mean weight\?"),
        ("a: {dataset_parser: mmeb, weight: 1}", "neither dataset_name nor dataset_path"),
        ("a: {dataset_parser: mmeb, dataset_name: x, weight: much}", "a: weight: "),
        ("a: 7", "a: dataset_parser None is not read"),
        ("- a", "holds no data sets"),
        ("a: [", "cannot be read as a mix"),
    ],
)
def test_what_is_no_mix_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_mix(mix(tmp_path, text))


def test_a_mix_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read as a mix"):
        read_mix(MixSettings(path=tmp_path / "none.yaml"))
