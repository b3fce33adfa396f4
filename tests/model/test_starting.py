"""Training begins from a base model, or goes on from an export: banks, heads and template too."""

import logging
from pathlib import Path

import pytest
import torch

from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.starting import check_base, find_start, located
from tests.tiny import model_settings, new_embedder


@pytest.fixture
def first(tiny_base: Path, tmp_path: Path) -> tuple[Embedder, Path]:
    """A model whose banks and heads no seed of these tests gives, and its run directory."""
    model = new_embedder(tiny_base, seed=41)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    run = tmp_path / "first"
    model.save_pretrained(run / "best")
    return model, run


@pytest.mark.parametrize("place", ["", "best"])
def test_a_second_round_begins_where_the_first_ended(
    first: tuple[Embedder, Path], mixed: list[Item], place: str
) -> None:
    model, run = first
    again = new_embedder(run / place, seed=3, template=None)
    theirs = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert again.template == model.template
    ours, gone_on = model.encode(mixed, "query"), again.encode(mixed, "query")
    assert torch.equal(ours.vectors, gone_on.vectors)
    # and what the data tasks of a run make of an item is the same
    rows = [find_start(run / place).row_encoder(m.settings) for m in (model, again)]
    assert rows[0].encode(mixed[0], "query").input_ids.tolist() == (
        rows[1].encode(mixed[0], "query").input_ids.tolist()
    )


def test_a_base_model_has_new_banks_by_the_seed(tiny_base: Path) -> None:
    assert find_start(tiny_base).export is None
    one, same, other = (new_embedder(tiny_base, seed=seed).banks["query"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "change", [{"ladder": ("1x1", "2x3")}, {"embedding_dim": 8}, {"fuse_k": 2}]
)
def test_an_export_of_other_sizes_is_refused_with_its_own(
    first: tuple[Embedder, Path], change: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=r"this run (has|fuses) .*model\.ladder=.*embedding_dim=16"):
        new_embedder(first[1], **change)


def test_heads_that_only_one_of_both_has_are_named(
    first: tuple[Embedder, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model, run = first
    with caplog.at_level(logging.WARNING):
        plain = new_embedder(run, has_fused=False)
    assert torch.equal(plain.banks["query"], model.banks["query"])
    assert plain.fused_dim is None
    assert "fused_projection" in caplog.text
    assert "begin anew" not in caplog.text


def test_a_fused_vector_may_be_as_wide_as_the_model(tiny_base: Path) -> None:
    wide = Embedder.build(model_settings(tiny_base, fused_dim="hidden"))
    assert wide.fused_dim == wide.backbone.hidden_dim
    assert isinstance(wide.fused_projection, torch.nn.Linear)
    assert torch.equal(wide.fused_projection.weight, torch.eye(wide.backbone.hidden_dim))


@pytest.mark.parametrize("base", ["first", "tiny", "Owner/model"])
def test_what_can_be_begun_from_passes_before_anything_starts(
    first: tuple[Embedder, Path], tiny_base: Path, base: str
) -> None:
    check_base({"first": str(first[1]), "tiny": str(tiny_base)}.get(base, base))


def test_what_cannot_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.base '/no/base' does not exist: give"):
        check_base("/no/base")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_base(str(tmp_path / "file"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="of type 'bert'; supported: "):
        check_base(str(tmp_path))


def test_limits_of_pixels_that_contradict_are_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"max_pixels 100 .*1024.*processor of the base"):
        new_embedder(tiny_base, max_pixels=100)


def test_a_shipped_model_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = "rematch_ray/assets/tiny-base"
    monkeypatch.chdir(tmp_path)
    assert (Path(find_start(shipped).backbone) / "model.safetensors").exists()
    check_base(shipped)
    with pytest.raises(UserError, match="does not exist"):
        check_base(f"{shipped}-of-another-name")
    # what lies under the path that was given comes first
    Path(shipped).mkdir(parents=True)
    assert located(shipped) == shipped
