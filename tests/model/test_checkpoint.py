"""Exports: written whole, read back bit for bit, identified by what changes vectors, refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.model.checkpoint import (
    HEADS_FILE,
    META_FILE,
    load_embedder,
    load_identity,
    load_row_encoder,
    resolve_export,
)
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import LoraSettings, ModelIdentity, settings_digest
from rematch_ray.model.tiny import TINY_TEMPLATE
from tests.tiny import model_settings, new_embedder, png


@pytest.fixture
def copied(tiny_export: Path, tmp_path: Path) -> Path:
    """An export to be damaged."""
    return Path(shutil.copytree(tiny_export, tmp_path / "copied"))


def test_an_export_reads_back_bit_for_bit(
    tiny_base: Path, mixed: list[Item], tmp_path: Path
) -> None:
    model = new_embedder(tiny_base, seed=3)
    identity = model.save_pretrained(tmp_path / "export")
    again = Embedder.from_pretrained(tmp_path / "export", device="cpu")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert again.identity == identity
    # of the base its name, and not where it lay on this machine
    assert again.settings == model.settings.model_copy(update={"base": tiny_base.name})
    assert not again.training
    for side in ("query", "document"):
        first, second = model.encode(mixed, side), again.encode(mixed, side)
        assert torch.equal(first.vectors, second.vectors)
        assert first.fused is not None and second.fused is not None
        assert torch.equal(first.fused, second.fused)


def test_an_export_names_its_base_and_no_path(tiny_base: Path, tmp_path: Path) -> None:
    model = new_embedder(tiny_base)
    assert model.settings.base == str(tiny_base)
    model.save_pretrained(tmp_path / "a")
    assert str(tiny_base.parent) not in (tmp_path / "a" / META_FILE).read_text()
    model.settings = model.settings.model_copy(update={"base": "Qwen/Qwen3-VL-2B-Instruct"})
    model.save_pretrained(tmp_path / "b")
    read = json.loads((tmp_path / "b" / META_FILE).read_text())
    assert read["settings"]["base"] == "Qwen/Qwen3-VL-2B-Instruct"


def test_a_model_without_fused_vector_reads_back_as_one(tiny_base: Path, tmp_path: Path) -> None:
    identity = new_embedder(tiny_base, has_fused=False).save_pretrained(tmp_path / "export")
    assert identity.fused_dim is None
    again = Embedder.from_pretrained(tmp_path / "export", device="cpu")
    assert not again.has_fused
    assert again.matcher is None


def test_half_precision_reads_back_bit_for_bit(tiny_base: Path, tmp_path: Path) -> None:
    model = new_embedder(tiny_base, dtype="bfloat16")
    model.save_pretrained(tmp_path / "export")
    again = Embedder.from_pretrained(tmp_path / "export", device="cpu")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == again.state_dict()[name].dtype
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_same_weights_have_the_same_identity(tiny_base: Path, tmp_path: Path) -> None:
    model = new_embedder(tiny_base)
    first = model.save_pretrained(tmp_path / "a")
    second = model.save_pretrained(tmp_path / "b" / "c")
    third = Embedder.from_pretrained(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "d")
    assert first.digest == second.digest == third.digest
    # where the base lay and what the run is called do not matter
    model.name = "another"
    assert model.save_pretrained(tmp_path / "e").digest == first.digest


@pytest.mark.parametrize("which", ["backbone.model.model.visual", "banks.query", "matcher.roles"])
def test_any_changed_weight_has_another_identity(
    tiny_base: Path, tmp_path: Path, which: str
) -> None:
    model = new_embedder(tiny_base)
    before = model.save_pretrained(tmp_path / "a").digest
    weight = next(p for name, p in model.named_parameters() if name.startswith(which))
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    assert model.save_pretrained(tmp_path / "b").digest != before


def test_the_digest_follows_settings_that_change_vectors_and_no_others(tiny_base: Path) -> None:
    def digest(**changes: object) -> str:
        return settings_digest(model_settings(tiny_base, **changes), "weights")

    plain = digest()
    for change in (
        {"ladder": ("1x1", "4x6")},
        {"fuse_k": 2},
        {"template": TINY_TEMPLATE.model_copy(update={"match_instruction": "Same?"})},
        {"max_text_tokens": 7},
        {"min_pixels": 64},
        {"max_pixels": 4096},
    ):
        assert digest(**change) != plain, change
    for change in (
        {"base": "elsewhere"},
        {"freeze": ("vision",)},
        {"lora": LoraSettings()},
        {"gradient_checkpointing": True},
    ):
        assert digest(**change) == plain, change


def test_weights_have_a_digest_of_their_own_and_older_identities_go_without(
    tiny_base: Path, tiny_export: Path, tmp_path: Path
) -> None:
    identity = load_identity(tiny_export)
    other = new_embedder(tiny_base, max_text_tokens=7).save_pretrained(tmp_path / "export")
    assert other.digest != identity.digest
    assert other.weights_digest == identity.weights_digest
    assert len(identity.weights_digest) == 64
    older = identity.to_json()
    del older["weights_digest"]
    assert ModelIdentity.from_json(older).weights_digest == ""


def test_an_identity_reads_back_from_json(tiny_export: Path) -> None:
    identity = load_identity(tiny_export)
    assert ModelIdentity.from_json(json.loads(json.dumps(identity.to_json()))) == identity
    assert (identity.num_query_vectors, identity.num_document_vectors) == (4, 6)
    assert (identity.embedding_dim, identity.fused_dim) == (16, 24)
    with pytest.raises(KeyError):
        ModelIdentity.from_json({"digest": "x"})


def test_an_export_holds_no_pickle_and_transformers_reads_its_backbone(tiny_export: Path) -> None:
    from transformers import AutoModelForImageTextToText

    suffixes = {path.suffix for path in tiny_export.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja", ".txt"}
    AutoModelForImageTextToText.from_pretrained(tiny_export / "backbone")


def test_a_run_directory_stands_for_its_best_export(tiny_export: Path, tmp_path: Path) -> None:
    for name in ("last", "best"):
        (tmp_path / name).symlink_to(tiny_export)
        assert resolve_export(tmp_path) == tmp_path / name
    assert resolve_export(tiny_export) == tiny_export


def refuse(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Embedder.from_pretrained(path)


def test_what_is_no_export_is_refused_by_what_it_is(tiny_base: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "no model at")
    refuse(tmp_path, "neither an export")
    refuse(tiny_base, "neither an export")
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "neither an export")


def rewrite(export: Path, change: Callable[[dict], None]) -> None:
    meta = json.loads((export / META_FILE).read_text())
    change(meta)
    (export / META_FILE).write_text(json.dumps(meta))


def test_unreadable_or_foreign_metadata_is_refused(copied: Path) -> None:
    rewrite(copied, lambda meta: meta.update(format_version=99))
    refuse(copied, "format version 99")
    rewrite(copied, lambda meta: meta.update(format_version=1, settings={"base": "x", "wat": 1}))
    refuse(copied, "settings that do not fit")
    rewrite(copied, lambda meta: meta.pop("settings"))
    refuse(copied, "settings")
    (copied / META_FILE).write_text("{not json")
    refuse(copied, "cannot be read")
    (copied / META_FILE).write_text("[]")
    refuse(copied, "cannot be read")


def test_metadata_without_identity_is_refused(copied: Path) -> None:
    rewrite(copied, lambda meta: meta.pop("identity"))
    refuse(copied, "identity")


def test_heads_that_do_not_fit_are_refused(copied: Path) -> None:
    heads = load_file(copied / HEADS_FILE)
    without = {name: tensor for name, tensor in heads.items() if name != "banks.query"}
    save_file(without, copied / HEADS_FILE)
    refuse(copied, r"missing \['banks.query'\]")
    save_file({**heads, "more": torch.zeros(1)}, copied / HEADS_FILE)
    refuse(copied, r"unexpected \['more'\]")
    save_file({**heads, "banks.query": torch.zeros(2, 3)}, copied / HEADS_FILE)
    refuse(copied, r"banks\.query")
    (copied / HEADS_FILE).write_bytes(b"short")
    refuse(copied, "cannot be read")
    (copied / HEADS_FILE).unlink()
    refuse(copied, "cannot be read")


def test_missing_processors_or_weights_are_refused(copied: Path) -> None:
    (copied / "backbone" / "model.safetensors").unlink()
    refuse(copied, "no base model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / "backbone" / name).unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_row_encoder(copied)


def test_a_save_that_fails_leaves_the_old_export_and_no_rest(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    first = new_embedder(tiny_base)
    before = first.save_pretrained(folder)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RowEncoder, "save_processors", full_disk)
        with pytest.raises(OSError, match="no space"):
            new_embedder(tiny_base, seed=1).save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert load_embedder(folder).identity == before
    # and one that succeeds replaces it
    after = new_embedder(tiny_base, seed=1).save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert load_identity(folder) == after != before


FRESH = """
import sys, torch
from safetensors.torch import load_file
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelIdentity
model = Embedder.from_pretrained(sys.argv[1], device="cpu")
stored = load_file(sys.argv[2])
answers = model.match(stored["query"].float(), stored["documents"].float()[None])
vectors = model.encode_query(["a red circle"]).vectors
torch.save({"answers": answers, "vectors": vectors}, sys.argv[3])
"""


def test_a_fresh_process_answers_alike_from_stored_vectors_alone(
    tiny_export: Path, embedder: Embedder, mixed: list[Item], tmp_path: Path, repository: Path
) -> None:
    """All it holds is the export and float16 fused vectors, as an embedding shard does."""
    query, documents = embedder.encode_query("a red circle"), embedder.encode_document(mixed)
    assert query.fused is not None and documents.fused is not None
    stored = {"query": query.fused.half(), "documents": documents.fused.half()}
    save_file(stored, tmp_path / "stored.safetensors")
    files = [tiny_export, tmp_path / "stored.safetensors", tmp_path / "got.pt"]
    command = [sys.executable, "-c", FRESH, *map(str, files)]
    subprocess.run(command, check=True, cwd=repository, timeout=150)
    got = torch.load(files[-1])
    want = embedder.match(stored["query"].float(), stored["documents"].float()[None])
    torch.testing.assert_close(got["answers"], want, atol=1e-6, rtol=0)
    assert torch.equal(got["vectors"], query.vectors)
    # storing in half precision moves no answer to speak of
    exact = embedder.match(query.fused, documents.fused[None])
    torch.testing.assert_close(want, exact, atol=0.05, rtol=0)
    assert exact.std() > 0.05


def test_pictures_as_bytes_and_limits_are_those_of_the_export(
    tiny_base: Path, tmp_path: Path
) -> None:
    new_embedder(tiny_base, max_pixels=32 * 32, max_text_tokens=3).save_pretrained(tmp_path / "e")
    encoder = load_row_encoder(tmp_path / "e")
    row = encoder.encode(Item.of(png("red", 64, 64), "a red circle left of", id="x"), "query")
    assert row.truncated
    assert row.grid.prod() <= 4


def test_a_hub_id_is_fetched_and_a_missing_one_is_refused_in_one_line(
    tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot_download(repo_id: str, **_: object) -> str:
        asked.append(repo_id)
        if repo_id == "team/model":
            return str(tiny_export)
        raise OSError("offline\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_export("team/model") == tiny_export
    with pytest.raises(UserError, match=r"no folder 'team/other' here.*: offline$"):
        resolve_export("team/other")
    assert asked == ["team/model", "team/other"]
