"""`rematch-ray index build --lexical` and `search --hybrid`, from arguments to JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.cli import main
from rematch_ray.model.embedder import Embedder
from rematch_ray.serve import pair
from tests.index.made import Vectors, queries, unit, write_embeddings


class StubEmbedder:
    """Gives every query the same vectors."""

    def encode_query(self, query: object, instruction: str | None = None) -> Vectors:
        return queries(1)

    def instruction_for(self, side: str) -> str:
        return ""


@pytest.fixture
def embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 documents, one in ten of which is an otter; the model is a stub."""
    monkeypatch.setattr(pair, "fitting_export", lambda index, model: "stub")
    monkeypatch.setattr(Embedder, "from_pretrained", lambda path: StubEmbedder())
    payloads = [{"name": "Fischotter" if n % 10 == 0 else "ein Vogel", "n": n} for n in range(30)]
    return write_embeddings(
        tmp_path / "embeddings", unit((30, 8, 16), 1), unit((30, 24), 2), payloads=payloads
    )


def run(*argv: object, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_words_find_what_vectors_do_not(
    embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    build = ("index", "build", "--embeddings", embeddings, "--out", index)
    run(*build, "--lexical", "name", capsys=capsys)
    ask = ("search", "--index", index, "FISCHOTTER", "--top-k", 3)
    plain = run(*ask, capsys=capsys)
    assert all("parts" not in hit for hit in plain["results"])
    for weight in ([], ["--lexical-weight", 0.9]):
        found = run(*ask, "--hybrid", "weighted", *weight, capsys=capsys)
        names = [hit["payload"]["name"] for hit in found["results"]]
        assert names.count("Fischotter") == 3 if weight else "Fischotter" in names
        assert all(set(hit["parts"]) == {"vector", "lexical"} for hit in found["results"])
        assert found["stages"][-1]["name"] == "fusion:weighted"


def test_mistakes_are_one_line(
    embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    build = ["index", "build", "--embeddings", str(embeddings), "--out", str(index)]
    refused = {
        "no payload field 'nam' to index; did you mean name?": [*build, "--lexical", "nam"],
        "payload field 'n' is int64": [*build, "--lexical", "n"],
        "exclude each other": [*build, "--lexical", "name", "--no-lexical"],
    }
    for says, argv in refused.items():
        assert main(argv) == 2
        complaint = capsys.readouterr().err
        assert says in complaint
        assert complaint.count("\n") == 1
    assert main([*build, "--no-lexical"]) == 0
    search = ["search", "--index", str(index)]
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    refused = {
        "has no lexical index: build it with --lexical": [*search, "a", "--hybrid", "rrf"],
        "--hybrid needs words": [*search, "--image", str(picture), "--hybrid", "rrf"],
        "give --hybrid": [*search, "a", "--lexical-weight", "0.3"],
        "'2' is not a number from 0 to 1": [*search, "a", "--lexical-weight", "2"],
    }
    capsys.readouterr()
    for says, argv in refused.items():
        assert main(argv) == 2
        assert says in capsys.readouterr().err
