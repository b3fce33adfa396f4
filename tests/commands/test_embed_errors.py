"""What a user of `rematch-ray embed` sees when something is wrong: one line, exit code 2."""

import json
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray.data

from rematch_ray.cli import main
from rematch_ray.data.schema import Item, items_to_table, write_parquet
from rematch_ray.index.shards import EmbeddingShards
from tests.tiny import new_embedder
from tests.workloads.full_disk import full_disk, signalling_disk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    items = [Item.of(f"text {n}", id=f"d{n}") for n in range(40)]
    write_parquet(items_to_table(items), folder / "items.parquet")
    lines = [json.dumps({"caption": f"text {n}", "key": f"d{n}"}) for n in range(40)]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Told:
    """Runs the verb and returns its complaint."""

    def __init__(self, capsys: pytest.CaptureFixture[str], export: Path) -> None:
        self._capsys = capsys
        self._export = export

    def __call__(self, data: Path, out: Path | str, *more: str, model: Path | None = None) -> str:
        paths = {"--model": model or self._export, "--data": data, "--out": out}
        given = [str(word) for pair in paths.items() for word in pair]
        code = main(["embed", *given, *more])
        written = self._capsys.readouterr().err
        assert code == 2, written
        lines = [line for line in written.splitlines() if line.startswith("rematch-ray: ")]
        assert len(lines) == 1, written
        assert "Traceback" not in written
        return lines[0].removeprefix("rematch-ray: error: ")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], tiny_export: Path) -> Told:
    return Told(capsys, tiny_export)


def test_a_wrong_column_is_named_with_those_that_are_there(
    told: Told, data: Path, tmp_path: Path
) -> None:
    line = told(data / "lines.jsonl", tmp_path / "out", "--columns", "text=captoin,id=key")
    assert "'captoin'" in line
    assert "caption" in line.replace("captoin", "")
    assert not (tmp_path / "out").exists()
    line = told(
        data / "lines.jsonl",
        tmp_path / "out",
        "--columns",
        "text=tea \N{HOT BEVERAGE}\N{BUBBLE TEA}",
    )
    assert "no column 'tea \N{HOT BEVERAGE}\N{BUBBLE TEA}'" in line


def test_a_role_that_no_column_can_have_is_named_with_those_that_can(
    told: Told, data: Path, tmp_path: Path
) -> None:
    line = told(data / "lines.jsonl", tmp_path / "out", "--columns", "txt=caption")
    assert "'txt' is no role of a column; did you mean text?" in line


def test_what_is_read_and_in_which_format_is_told_and_a_mixed_folder_refused(
    told: Told, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_export: Path
) -> None:
    line = told(data, tmp_path / "out")
    assert "would leave out 1 that hold rows too (lines.jsonl)" in line
    (tmp_path / "out").write_text("in the way")
    given = ["embed", "--model", str(tiny_export), "--out", str(tmp_path / "out"), "--data"]
    assert main([*given, str(data / "items.parquet"), "--data", str(data / "items.parquet")]) == 2
    assert "reading 1 file as rematch (detected)" in capsys.readouterr().err
    named = ["--format", "jsonl", "--columns", "text=caption"]
    assert main([*given, str(data), *named]) == 2
    assert "reading 1 file as jsonl (as named)" in capsys.readouterr().err


def test_data_that_is_not_there_or_of_no_known_format_is_named(
    told: Told, data: Path, tmp_path: Path
) -> None:
    assert str(tmp_path / "nothing") in told(tmp_path / "nothing", tmp_path / "out")
    strange = tmp_path / "notes.xyz"
    strange.write_text("what is this")
    assert "notes.xyz" in told(strange, tmp_path / "out")
    assert "did you mean" in told(data / "lines.jsonl", tmp_path / "out", "--format", "jsonlines")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("empty", ["folder", "items.parquet", "lines.jsonl"])
@pytest.mark.usefixtures("ray_cluster")
def test_an_empty_corpus_is_a_mistake_and_leaves_no_embeddings(
    told: Told, tmp_path: Path, empty: str
) -> None:
    source = tmp_path / empty
    if empty == "folder":
        source.mkdir()
    elif empty == "items.parquet":
        write_parquet(items_to_table([Item.of("x")]).slice(0, 0), source)
    else:
        source.write_text("")
    line = told(source, tmp_path / "out")
    assert str(source) in line
    assert "no rows" in line or "no files" in line
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_output_that_is_a_file_or_below_one_is_refused(
    told: Told, data: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert f"{taken} is a file; choose a directory as --out" in told(data / "items.parquet", taken)
    line = told(data / "items.parquet", taken / "below")
    assert f"{taken / 'below'}" in line
    assert "Not a directory" in line
    assert "choose another --out" in line
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("out", ["s3://bucket/vectors", "s3:/bucket/vectors", "file:///vectors"])
def test_an_output_that_is_a_uri_is_refused_by_name(
    told: Told, data: Path, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = told(data / "items.parquet", out)
    assert f"--out {out} is a URI: embeddings are written to a directory" in line
    assert "give such a path" in line
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_named_with_the_cause(told: Told, data: Path) -> None:
    line = told(data / "items.parquet", Path("/proc/embeddings"))
    assert "/proc/embeddings cannot be written: No such file or directory" in line
    assert "choose another --out" in line


def test_an_output_that_holds_something_else_is_left_alone(
    told: Told, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"results of somebody else")
    line = told(data / "items.parquet", tmp_path)
    assert "'part-00000.parquet', which is no embedding; choose an empty" in line
    assert (tmp_path / "part-00000.parquet").read_bytes() == b"results of somebody else"


def test_a_prefix_that_the_model_was_not_trained_for_is_refused_before_anything_starts(
    told: Told, data: Path, tmp_path: Path
) -> None:
    line = told(data / "items.parquet", tmp_path / "out", "--num-vectors", "5")
    assert "num_vectors 5 is no prefix" in line
    assert "allowed: 1, 3, 6" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def _restored_data_context(self) -> Iterator[None]:
        before = ray.data.DataContext.get_current().copy()
        yield
        ray.data.DataContext._set_current(before)

    @pytest.mark.parametrize("file", [".progress/.finished.parquet", ".summary.json.unfinished"])
    def test_a_disk_that_is_full_when_the_rows_are_written_is_one_line_too(
        self, told: Told, data: Path, tmp_path: Path, tiny_export: Path, file: str
    ) -> None:
        blocked = tmp_path / file
        blocked.parent.mkdir(parents=True, exist_ok=True)
        # a directory of ours, whatever lies in it
        (tmp_path / ".progress").mkdir(exist_ok=True)
        blocked.symlink_to("/dev/full")
        line = told(data / "items.parquet", tmp_path)
        assert f"{tmp_path} cannot be written: No space left on device" in line
        # the manifest stands, and what it says is noted before anything is read
        if ".progress" in file:
            assert "No space left on device" in told(data / "items.parquet", tmp_path)
        blocked.unlink()
        given = ["--model", str(tiny_export), "--data", str(data / "items.parquet")]
        assert main(["embed", *given, "--out", str(tmp_path)]) == 0
        assert len(EmbeddingShards.open(tmp_path).read().ids) == 40

    def test_a_disk_that_fills_is_one_line_and_the_same_command_goes_on(
        self,
        told: Told,
        data: Path,
        tmp_path: Path,
        tiny_export: Path,
        tiny_base: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        # room for some of five files of staged rows
        # and one of their writers is late: it goes on while the next run writes
        late = tmp_path / "late"
        write, now = ray.data.Dataset.write_parquet, signalling_disk(late)
        filling = partialmethod(write, filesystem=full_disk(20_000, late))
        small = ["rows_per_write=8", "window_rows=8"]
        with monkeypatch.context() as patch:
            patch.setattr(ray.data.Dataset, "write_parquet", filling)
            line = told(data / "items.parquet", out, *small)
        assert f"{out} cannot be written: No space left on device" in line
        assert "free some space and give the same command again" in line
        assert not (out / "manifest.json").exists()
        given = ["--model", str(tiny_export), "--data", str(data / "items.parquet")]
        stored = ["--dtype", "int8", "--num-vectors", "3"]
        assert late.exists()
        with monkeypatch.context() as patch:
            patch.setattr(ray.data.Dataset, "write_parquet", partialmethod(write, filesystem=now))
            assert main(["embed", *given, "--out", str(out), *stored, "--json"]) == 0
        assert not late.exists()
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        # what was staged before the disk was full is not embedded again
        assert result["embedded"] == 40
        assert 0 < result["embedded_now"] < 40
        batch = EmbeddingShards.open(out).read()
        assert sorted(batch.ids) == sorted(f"d{n}" for n in range(40))
        assert batch.vectors.shape == (40, 3, 16)
        assert pq.read_schema(next(out.glob("part-*"))).metadata[b"dtype"] == b"int8"
        # and a model that does not match what lies there
        other = tmp_path / "other"
        new_embedder(tiny_base, seed=7).save_pretrained(other)
        line = told(data / "items.parquet", out, *stored, model=other)
        assert f"{out} was made with model" in line
        assert f"choose another --out, or delete {out}" in line
        line = told(data / "items.parquet", out)
        assert "made with dtype 'int8', asked for is 'float16'" in line
