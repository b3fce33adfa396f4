"""The demo's parts that need no training: what it asks, what it shows, what it refuses."""

from pathlib import Path

import pytest
from PIL import Image

from rematch_ray.data.demo import write_demo
from rematch_ray.data.demo_corpus import DemoSizes
from rematch_ray.errors import UserError
from rematch_ray.workloads.demo import STAGES, demo
from rematch_ray.workloads.demo_lines import answer_lines, report_lines, skill_lines, time_line
from rematch_ray.workloads.showcase import ask_server, draw_sheet, pick_questions

ANSWER = {
    "budget": "4x8",
    "candidates": 9,
    "stages": [],
    "scored": 9,
    "live": 9,
    "scores": "float",
    "exact": True,
    "generation": "g1",
    "http_ms": 12.3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    sizes = DemoSizes(
        emoji_train=20, emoji_held_out=4, scene_train_families=2, scene_held_out_families=1
    )
    write_demo(folder, sizes=sizes)
    return folder


def test_three_questions_are_asked_and_each_has_an_answer_in_the_corpus(data: Path) -> None:
    questions = pick_questions(data)
    assert [question.source for question in questions] == ["emoji", "emoji", "scenes"]
    for question in questions:
        assert question.text
        for document in question.right:
            assert (data / question.source / "media" / f"{document}.png").exists()


def test_the_contact_sheet_shows_a_picture_per_hit(data: Path, tmp_path: Path) -> None:
    questions = pick_questions(data)
    answers = []
    for question in questions:
        [right, *_] = sorted(question.right)
        media = f"{question.source}/media/{right}.png"
        hit = {"id": right, "score": 0.5, "payload": {"name": "right", "media": media}}
        answers.append({**ANSWER, "results": [hit]})
    sheet = draw_sheet(answers, questions, data, tmp_path / "sheet.png")
    with Image.open(sheet) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_an_answer_marks_the_right_document() -> None:
    question = {"text": "an otter", "what": "seen", "right": ["b"]}
    hits = [{"id": i, "score": 0.9, "payload": {"name": f"name {i}"}} for i in "abcd"]
    lines = answer_lines(question, {**ANSWER, "results": hits})
    assert lines[0].startswith('"an otter" (seen): budget 4x8, 9 documents scored, 12 ms')
    assert [line.endswith("<- right") for line in lines[1:]] == [False, True, False]


def test_a_report_shows_the_best_hits_difference_slices_and_the_matching_stage() -> None:
    interval = {"mean": 0.1, "low": 0.0, "high": 0.2, "level": 0.95}
    rung = {"recall@1": 0.5, "recall@10": 0.7, "ndcg@10": 0.6}
    view = {"accuracy": 0.75, "ranked": 0.8, "worst_kind": 0.6}
    report = {
        "task": "toy",
        "rungs": {"1x1": rung, "4x8": {**rung, "slices": {"seen=True": {"queries": 5, **rung}}}},
        "chance": rung,
        "blind": None,
        "differences": {"4x8 - 1x1": {"hit@1": interval, "ndcg@10": interval}},
        "matching": {"views": {"raw/raw": view}},
    }
    text = "\n".join(report_lines(report))
    assert "4x8 - 1x1, Hit@1: +10.0 points (95 % interval +0.0 to +20.0)" in text
    assert "nDCG@10: +" not in text
    assert "toy, seen=True (5 queries), 4x8: R@1 50.0  R@10 70.0" in text
    assert ["raw/raw", "75.0", "80.0", "60.0"] in [line.split() for line in text.splitlines()]


def test_skill_and_time_are_shown_as_lines() -> None:
    values = {"caption_loss": 0.123, "caption_exact": 0.5, "question_accuracy": 0.75}
    text = "\n".join(skill_lines({"scenes": {"before": values, "after": values}}))
    assert "scenes, after" in text
    assert "0.12" in text
    assert time_line({"data": 1.0, "train": 2.0}) == "seconds: data 1  train 2  (together 3)"


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the server ended \(.*\); see .*serve.log"):
        ask_server(tmp_path / "no-index", tmp_path, [], log=tmp_path / "serve.log")


def test_outside_a_checkout_the_demo_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="call it from the root of the repository"):
        demo(quick=True)
    assert not (tmp_path / "demo-run").exists()


def test_every_stage_has_a_name_of_its_own() -> None:
    assert len(set(STAGES)) == len(STAGES)
