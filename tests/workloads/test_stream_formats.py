"""Training reads sources of any layout: the same samples at every world size."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from rematch_ray.cli import main
from rematch_ray.config import DataSettings
from rematch_ray.data.mix import MixSettings
from rematch_ray.data.order import OrderSettings
from rematch_ray.data.readers import references
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stream import ReadStretch, TrainingData, open_data
from tests.data.readers.layouts import write_image, write_rows
from tests.tiny import COLOURS, png

ROWS = 45


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """MMEB-train with images, a few rows of sentence-transformers' JSONL, pages with bytes."""
    rows = []
    for number in range(ROWS):
        colour = COLOURS[number % len(COLOURS)]
        write_image(tmp_path / "image" / f"{number}.png", png(colour, 32, 32 + 16 * (number % 2)))
        row = {
            "qry": f"Which picture is {colour}? {number}",
            "qry_image_path": "",
            "pos_text": "<|image_1|>\nRepresent the picture.",
            "pos_image_path": f"{number}.png",
            "neg_text": "a grey bar",
            "neg_image_path": "",
        }
        rows.append(row)
    write_rows(
        tmp_path / "TIGER-Lab/MMEB-train/Colours/original-00000-of-00001.parquet",
        rows,
        row_group_size=10,
    )
    pairs = [
        {"anchor": f"anchor {n}", "positive": f"answer {n}", "negative": f"wrong {n}"}
        for n in range(ROWS)
    ]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    pages = [
        {"query": f"page {n}", "image": {"bytes": png(COLOURS[n % 8]), "path": None}, "source": "p"}
        for n in range(ROWS)
    ]
    write_rows(tmp_path / "pages" / "train-00000-of-00001.parquet", pages, row_group_size=16)
    return tmp_path


def sources(data: Path) -> tuple[SourceSettings, ...]:
    return (
        SourceSettings(
            name="colours",
            path=data / "TIGER-Lab/MMEB-train/Colours",
            image_root=str(data / "image"),
            weight=2,
        ),
        SourceSettings(name="pairs", path=data / "pairs.jsonl", weight=1),
        SourceSettings(name="pages", path=data / "pages", weight=1),
    )


def settings(data: Path, **changes: object) -> DataSettings:
    order = OrderSettings(global_batch=12, sub_batch=3, window=2)
    return DataSettings(**{"sources": sources(data), "order": order} | changes)


def samples_of(
    opened: TrainingData, stop: int, world_size: int
) -> list[list[tuple[str, str, int]]]:
    """Of every step: query text, source and bytes of its images, in the order of sub-batches."""
    steps: list[dict[int, list[tuple[str, str, int]]]] = [{} for _ in range(stop)]
    for block in ReadStretch(opened, 0, stop, world_size)():
        assert not block["error"][0].as_py()
        rank, index = block["rank"][0].as_py(), block["index"][0].as_py()
        for place, stream in enumerate(block["tables"][0].values):
            with pa.ipc.open_stream(stream.as_buffer()) as reader:
                rows = reader.read_all().to_pylist()
            # sub-batch `place` of a rank is the step's number rank + place * world_size
            steps[index][rank + place * world_size] = [_told(row) for row in rows]
    return [[row for _, rows in sorted(step.items()) for row in rows] for step in steps]


def _told(row: dict) -> tuple[str, str, int]:
    [positive] = row["positives"]
    seen = sum(len(part["image"] or b"") for part in positive["item"]["parts"])
    return row["query"]["parts"][0]["text"], row["source"], seen


def test_a_plan_over_any_layout_gives_the_same_samples_at_every_world_size(data: Path) -> None:
    opened = open_data(settings(data), 3)
    assert [rows.num_rows for rows in opened.plan.sources] == [ROWS] * 3
    stop = 2 * opened.plan.steps_per_epoch
    alone = samples_of(opened, stop, 1)
    for world_size in (2, 3, 4):
        assert samples_of(opened, stop, world_size) == alone
    epoch = [row for step in alone[: stop // 2] for row in step]
    assert len(set(epoch)) == len(epoch) == 12 * opened.plan.steps_per_epoch
    assert {source for _, source, _ in epoch} == {"colours", "pairs", "p"}
    assert all(bool(seen) == (source != "pairs") for _, source, seen in epoch)


def test_images_are_opened_for_the_rows_of_a_step_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(path: str, *, limit: int | None = None) -> bytes:
        opened.append(path)
        return read_bytes(path, limit=limit)

    read_bytes = references.read_bytes
    monkeypatch.setattr(references, "read_bytes", counted)
    training = open_data(settings(data, sources=sources(data)[:1]), 0)
    list(ReadStretch(training, 0, 2, 1)())
    assert len(opened) == 2 * 12


def test_images_that_are_missing_spoil_their_rows_and_no_others(data: Path) -> None:
    for number in range(10):
        (data / "image" / f"{number}.png").unlink()
    training = open_data(settings(data, sources=sources(data)[:1]), 0)
    rows = []
    for block in ReadStretch(training, 0, training.plan.steps_per_epoch, 1)():
        assert not block["error"][0].as_py()
        for stream in block["tables"][0].values:
            with pa.ipc.open_stream(stream.as_buffer()) as reader:
                rows += reader.read_all().to_pylist()
    bad = [row["error"] for row in rows if row["error"]]
    assert len(rows) == 36
    assert 1 <= len(bad) <= 10  # nine rows sit the epoch out
    assert all(re.search(r"image/\d\.png", error) for error in bad)
    assert all(_told(row)[2] for row in rows if not row["error"])


def test_documents_named_by_id_are_fetched_for_the_rows_of_a_step(data: Path) -> None:
    documents = [{"docid": f"d{n}", "title": "", "text": f"text {n}"} for n in range(200)]
    write_rows(data / "corpus" / "part.parquet", documents)
    rows = [
        {
            "query_id": n,
            "query_text": f"query {n}",
            "positive_document_ids": [f"d{n}"],
            "negative_document_ids": [f"d{n + 1}", f"d{n + 2}"],
        }
        for n in range(30)
    ]
    source = SourceSettings(
        name="nq",
        path=write_rows(data / "nq.jsonl", rows),
        corpus=str(data / "corpus"),
        corpus_copy=str(data / "copy"),
        max_negatives=1,
    )
    training = open_data(settings(data, sources=(source,)), 0)
    assert not (data / "copy").exists()
    taken = []
    for block in ReadStretch(training, 0, 2, 2)():
        for stream in block["tables"][0].values:
            with pa.ipc.open_stream(stream.as_buffer()) as reader:
                taken += reader.read_all().to_pylist()
    assert len(taken) == 24
    for row in taken:
        number = int(row["query"]["id"])
        told = [entry["item"] for entry in (*row["positives"], *row["negatives"])]
        assert [(item["id"], item["parts"][0]["text"]) for item in told] == [
            (f"d{n}", f"text {n}") for n in (number, number + 1)
        ]
    write_rows(data / "corpus" / "part.parquet", documents[:100])
    assert open_data(settings(data, sources=(source,)), 0).plan.digest != training.plan.digest


def test_only_the_first_rows_are_planned_where_a_limit_is_set(data: Path) -> None:
    limited = sources(data)[0].model_copy(update={"max_rows": 25})
    training = open_data(settings(data, sources=(limited,)), 0)
    assert training.plan.sources[0].row_groups == (10, 10, 5)
    queries = {
        row[0] for step in samples_of(training, training.plan.steps_per_epoch, 2) for row in step
    }
    assert {int(query.split()[-1]) for query in queries} <= set(range(25))


def test_a_mix_of_vlm2vec_adds_its_sources(data: Path) -> None:
    (data / "mix.yaml").write_text(
        "Colours:\n"
        "    dataset_parser: mmeb\n"
        "    dataset_name: TIGER-Lab/MMEB-train\n"
        "    subset_name: Colours\n"
        "    dataset_split: original\n"
        "    image_dir: image\n"
        "    num_sample_per_subset: 30\n"
        "    weight: 0.5\n"
    )
    mix = MixSettings(path=data / "mix.yaml", root=str(data))
    training = open_data(settings(data, sources=sources(data)[1:], mix=mix), 0)
    told = [(rows.name, rows.num_rows, rows.weight) for rows in training.plan.sources]
    assert told == [("pairs", 45, 1), ("pages", 45, 1), ("Colours", 30, 0.5)]
    clash = sources(data)[0].model_copy(update={"name": "Colours"})
    with pytest.raises(UserError, match="source names Colours, Colours repeat"):
        open_data(settings(data, sources=(clash,), mix=mix), 0)


def test_a_run_without_any_source_is_refused() -> None:
    with pytest.raises(ValueError, match="no source of training rows; give sources, mix, or both"):
        DataSettings()


def test_what_cannot_be_training_rows_is_refused_by_name(data: Path) -> None:
    write_rows(data / "corpus.jsonl", [{"_id": "a", "text": "b"}])
    corpus = SourceSettings(name="corpus", path=data / "corpus.jsonl")
    with pytest.raises(UserError, match=r"corpus\.jsonl: holds beir .*is read as items"):
        open_data(settings(data, sources=(corpus,)), 0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_trains_on_layouts_of_others(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "image" / "7.png").write_bytes(b"not an image")
    config = data / "run.yaml"
    config.write_text(
        f"""
name: layouts
storage: {tmp_path / "runs"}
model: {{base: {tiny_base}, ladder: [1x1, 2x3], embedding_dim: 16, fused_dim: 24, fuse_k: 2}}
optimisation: {{warmup_steps: 2}}
data:
  sources:
    - {{name: colours, path: {data / "TIGER-Lab/MMEB-train/Colours"}, format: mmeb,
       image_root: {data / "image"}, weight: 2}}
    - {{name: pairs, path: {data / "pairs.jsonl"}, weight: 1}}
    - {{name: pages, path: {data / "pages"}, weight: 1}}
  max_bad_share: 0.2
  order: {{global_batch: 12, sub_batch: 3, window: 2}}
train: {{steps: 14, num_workers: 2, checkpoint_every: 7}}
"""
    )
    assert main(["train", "--config", str(config), "--json"]) == 0
    steps = [r for r in RunDirectory(tmp_path / "runs/layouts").records() if r["event"] == "step"]
    assert [record["step"] for record in steps] == list(range(14))
    bad = [reason for record in steps for reason in record.get("bad_rows", ())]
    assert bad
    assert all("not an image" in reason for reason in bad)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 14
    assert (tmp_path / "runs/layouts/best").is_dir()
