"""MMEB-eval from its files to a report: its targets embedded and indexed, its queries measured."""

from pathlib import Path

import pytest

from rematch_ray.config import EmbedSettings, EvaluationConfig, TaskSettings
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.index.build import build_index
from rematch_ray.workloads.embed import embed
from rematch_ray.workloads.evaluate import evaluate
from tests.data.readers.layouts import write_image, write_rows
from tests.tiny import COLOURS, png


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_mmeb_eval_is_measured_from_its_files(tiny_export: Path, tmp_path: Path) -> None:
    for colour in COLOURS:
        write_image(tmp_path / "images" / "Colours" / f"{colour}.png", png(colour))
    rows = [
        {
            "qry_inst": "Find the picture.",
            "qry_text": f"in {colour}",
            "qry_img_path": "",
            "tgt_inst": "<|image_1|> Represent it.",
            "tgt_text": ["", ""],
            "tgt_img_path": [f"Colours/{colour}.png", f"Colours/{COLOURS[number - 1]}.png"],
        }
        for number, colour in enumerate(COLOURS)
    ]
    data = tmp_path / "MMEB" / "Colours"
    write_rows(data / "test-00000-of-00001.parquet", rows)
    reader = ReaderSettings(image_root=str(tmp_path / "images"))
    result = embed(
        model=tiny_export,
        data=data,
        out=tmp_path / "embeddings",
        settings=EmbedSettings(batch_rows=8),
        reader=reader,
    )
    assert result["embedded"] == len(COLOURS)
    build_index(tmp_path / "embeddings", tmp_path / "index")
    task = TaskSettings(
        name="Colours",
        queries=data,
        qrels=data,
        reader=reader,
        source="Colours",
        candidates="listed",
    )
    config = EvaluationConfig(
        index=tmp_path / "index",
        model=str(tiny_export),
        out=tmp_path / "out",
        tasks=(task,),
        plots=False,
        timed_queries=0,
    )
    [report] = evaluate(config)["reports"]
    assert (report["queries"], report["documents"]) == (len(COLOURS), len(COLOURS))
    # two candidates each
    assert report["chance"]["hit@1"] == pytest.approx(1 / 2)
    assert all(rung["recall@10"] == 1 for rung in report["rungs"].values())
