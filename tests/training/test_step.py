"""A step, its schedule, what it trains, what it refuses; state and exports read back."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training, schedule_share
from tests.tiny import model_settings, objective, png, step_table, text_sample

SAMPLES = [text_sample(number, negatives=1, image=number % 2 == 0) for number in range(4)]
FAST = OptimisationSettings(learning_rate=1e-3, warmup_steps=0, schedule="constant")


def build(
    base: Path,
    *,
    settings: ObjectiveSettings | None = None,
    optimisation: OptimisationSettings = FAST,
    seed: int = 0,
    total_steps: int = 10,
    device: str = "cpu",
    **changes: Any,
) -> Training:
    return Training.build(
        model_settings(base, **changes),
        settings or objective(),
        optimisation,
        seed=seed,
        total_steps=total_steps,
        device=device,
        name="tiny",
    )


def batch(training: Training, step: int = 0) -> TrainBatch:
    encoder = training.joint.embedder.row_encoder
    return training.collate(step_table(encoder, [SAMPLES[:2], SAMPLES[2:]], step=step), step=step)


def weights(training: Training) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in training.joint.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_steps_on_the_same_rows_lower_the_loss(tiny_base: Path, device: str) -> None:
    training = build(tiny_base, device=device)
    rows = batch(training)
    losses = [training.step(rows)["loss"] for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    assert training.steps_done == 6


def test_metrics_name_every_term_budget_and_view(tiny_base: Path) -> None:
    metrics = build(tiny_base).step(batch(build(tiny_base)))
    rungs = ("1x1", "2x3", "4x6")
    views = ("raw/raw", "raw/emb", "emb/raw", "emb/emb")
    terms = ("fused", "groups", "orthogonality", "matching")
    assert set(metrics) == {
        "loss",
        *(f"loss/{name}" for name in (*terms, *rungs)),
        *(f"accuracy/{name}" for name in ("fused", *rungs)),
        *(f"accuracy/match/{name}" for name in views),
        *(f"vector_gradient/{name}" for name in rungs),
        *(f"similarity/{name}" for name in ("positive", "negative", "hardest_negative", "margin")),
        "negatives",
        "gradient_norm",
        "learning_rate",
    }
    assert all(math.isfinite(value) for value in metrics.values())
    groups = sum(metrics[f"loss/{rung}"] for rung in rungs) / 3
    assert metrics["loss/groups"] == pytest.approx(groups, rel=1e-5)
    assert all(0 <= metrics[name] <= 1 for name in metrics if name.startswith("accuracy"))


def test_the_seed_fixes_the_new_weights(tiny_base: Path) -> None:
    first, same, other = (build(tiny_base, seed=seed) for seed in (0, 0, 1))
    assert moved(weights(first), weights(same)) == set()
    changed = moved(weights(first), weights(other))
    assert "embedder.banks.query" in changed
    assert not any(name.startswith("embedder.backbone.") for name in changed)


@pytest.mark.parametrize("changes", [{}, {"lora": LoraSettings(rank=2)}], ids=["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    optimisation = OptimisationSettings(learning_rate=1e-3, warmup_steps=2, weight_decay=0.1)
    options: dict[str, Any] = {
        "optimisation": optimisation,
        "total_steps": 4,
        "settings": objective(learn_temperatures=True),
        **changes,
    }
    whole = build(tiny_base, **options)
    metrics = [whole.step(batch(whole, step)) for step in range(4)]

    first = build(tiny_base, **options)
    for step in range(2):
        first.step(batch(first, step))
    first.save(tmp_path / "state")
    # saving changes nothing for who goes on
    assert first.step(batch(first, 2)) == metrics[2]

    second = build(tiny_base, seed=9, **options)
    second.load(tmp_path / "state")
    assert second.steps_done == 2
    assert [second.step(batch(second, step)) for step in (2, 3)] == metrics[2:]
    assert moved(weights(whole), weights(second)) == set()


def test_a_state_goes_from_a_device_to_the_cpu_and_back(
    tiny_base: Path, tmp_path: Path, device: str
) -> None:
    first = build(tiny_base, device=device)
    first.step(batch(first))
    first.save(tmp_path / "first")
    saved = weights(first)
    second = build(tiny_base, seed=9)
    second.load(tmp_path / "first")
    assert moved({name: tensor.cpu() for name, tensor in saved.items()}, weights(second)) == set()
    second.step(batch(second, 1))
    second.save(tmp_path / "second")
    third = build(tiny_base, seed=8, device=device)
    third.load(tmp_path / "second")
    assert third.device.type == device
    assert third.steps_done == 2
    here = {name: tensor.cpu() for name, tensor in weights(third).items()}
    assert moved(weights(second), here) == set()
    third.step(batch(third, 2))


@pytest.mark.parametrize("chunk_tokens", [None, 60], ids=["at once", "gradient cache"])
def test_a_resumed_run_drops_what_an_uninterrupted_one_does(
    tiny_base: Path, tmp_path: Path, chunk_tokens: int | None
) -> None:
    def made() -> Training:
        optimisation = FAST.model_copy(update={"chunk_tokens": chunk_tokens})
        lora = LoraSettings(rank=2, dropout=0.5)
        return build(tiny_base, lora=lora, optimisation=optimisation)

    whole = made()
    metrics = []
    for step in range(3):
        metrics.append(whole.step(batch(whole, step)))
        if step == 1:
            whole.save(tmp_path / "state")
    resumed = made()
    resumed.load(tmp_path / "state")
    torch.rand(7)  # whatever was drawn in between
    assert resumed.step(batch(resumed, 2)) == metrics[2]


def test_state_is_no_pickle_of_the_model(tiny_base: Path, tmp_path: Path) -> None:
    training = build(tiny_base)
    training.step(batch(training))
    training.save(tmp_path / "state")
    assert {path.suffix for path in (tmp_path / "state").iterdir()} <= {".distcp", ".metadata", ""}


def test_adapters_and_new_weights_train_and_the_base_does_not(tiny_base: Path) -> None:
    training = build(tiny_base, lora=LoraSettings(rank=2, alpha=8))
    before = weights(training)
    for step in range(2):
        training.step(batch(training, step))
    changed = moved(before, weights(training))
    new = {name for name in changed if not name.startswith("embedder.backbone.")}
    assert {"embedder.banks.query", "embedder.banks.document", "embedder.matcher.roles"} <= new
    assert all(".lora_" in name for name in changed - new)
    assert len(changed - new) == 2 * 7 * 2


def test_an_export_of_adapters_embeds_like_the_trained_model(
    tiny_base: Path, tmp_path: Path
) -> None:
    training = build(tiny_base, lora=LoraSettings(rank=2, alpha=8))
    for step in range(2):
        training.step(batch(training, step))
    before = weights(training)
    identity = training.export(tmp_path / "export")
    assert moved(before, weights(training)) == set()
    loaded = Embedder.from_pretrained(tmp_path / "export", device="cpu")
    assert loaded.identity == identity
    inputs = ["a red bar", png()]
    ours, theirs = training.joint.embedder.encode_document(inputs), loaded.encode_document(inputs)
    torch.testing.assert_close(ours.vectors, theirs.vectors, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.fused, theirs.fused, atol=1e-4, rtol=0)
    # and the adapters did something
    base = build(tiny_base).joint.embedder.encode_document(inputs)
    assert (base.vectors - theirs.vectors).abs().max() > 1e-3


def test_an_export_embeds_like_the_trained_model(tiny_base: Path, tmp_path: Path) -> None:
    training = build(tiny_base)
    training.step(batch(training))
    training.export(tmp_path / "export")
    loaded = Embedder.from_pretrained(tmp_path / "export", device="cpu")
    ours = training.joint.embedder.encode_query("a red bar")
    assert torch.equal(ours.vectors, loaded.encode_query("a red bar").vectors)
    assert loaded.name == "tiny"


@pytest.mark.parametrize("part", ["vision", "merger", "embeddings", "language"])
def test_a_frozen_part_does_not_move(tiny_base: Path, part: Any) -> None:
    training = build(
        tiny_base,
        freeze=(part,),
        optimisation=FAST.model_copy(update={"weight_decay": 0.1}),
    )
    before = weights(training)
    training.step(batch(training))
    changed = moved(before, weights(training))
    prefix = {
        "vision": "embedder.backbone.model.model.visual.blocks",
        "merger": "embedder.backbone.model.model.visual.merger",
        "embeddings": "embedder.backbone.model.model.language_model.embed_tokens",
        "language": "embedder.backbone.model.model.language_model.layers",
    }[part]
    assert not any(name.startswith(prefix) for name in changed)
    assert "embedder.banks.document" in changed


def test_rates_and_decay_fall_where_they_should(tiny_base: Path) -> None:
    optimisation = OptimisationSettings(learning_rate=1e-4, weight_decay=0.3)
    training = build(
        tiny_base, optimisation=optimisation, settings=objective(learn_temperatures=True)
    )
    names = {id(p): name for name, p in training.joint.named_parameters()}
    seen = set()
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            is_old = name.startswith("embedder.backbone.")
            assert group["peak"] == pytest.approx(1e-4 if is_old else 1e-3), name
            decays = is_old and parameter.ndim > 1
            assert group["weight_decay"] == (0.3 if decays else 0.0), name
    assert seen == {name for name, p in training.joint.named_parameters() if p.requires_grad}
    # given, the new weights' rate is taken as it is
    optimisation = OptimisationSettings(learning_rate=1e-4, new_learning_rate=5e-4)
    groups = build(tiny_base, optimisation=optimisation).optimizer.param_groups
    assert groups[-1]["peak"] == 5e-4


@given(
    st.integers(0, 50),
    st.integers(1, 200),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(0, 1),
)
def test_the_schedule_rises_to_its_peak_and_falls_to_its_end(
    warmup: int, total: int, schedule: Any, final: float
) -> None:
    settings = OptimisationSettings(warmup_steps=warmup, schedule=schedule, final_share=final)
    shares = [schedule_share(step, total, settings) for step in range(total + 1)]
    assert all(0 <= share <= 1 + 1e-9 for share in shares)
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
    if total > warmup:
        assert max(shares) == pytest.approx(1)
        want = 1 if schedule == "constant" else final
        assert shares[-1] == pytest.approx(want, abs=1e-9)
    if warmup:
        assert shares[0] == pytest.approx(1 / warmup)


def test_the_step_uses_the_rate_of_the_schedule(tiny_base: Path) -> None:
    optimisation = OptimisationSettings(learning_rate=1e-3, warmup_steps=4)
    training = build(tiny_base, optimisation=optimisation)
    rows = batch(training)
    assert training.step(rows)["learning_rate"] == pytest.approx(2.5e-4)
    assert training.step(rows)["learning_rate"] == pytest.approx(5e-4)
    assert [group["lr"] for group in training.optimizer.param_groups][-1] == pytest.approx(5e-3)


def test_a_loss_that_is_not_finite_updates_nothing(tiny_base: Path, device: str) -> None:
    training = build(tiny_base, device=device)
    rows = batch(training)
    training.step(rows)
    with torch.no_grad():
        training.joint.embedder.banks["query"][0, 0] = math.nan
    before = weights(training)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1.*learning_rate"):
        training.step(rows)
    assert {n for n in moved(before, weights(training)) if n != "embedder.banks.query"} == set()
    assert training.steps_done == 1


def test_a_gradient_that_is_not_finite_updates_nothing(tiny_base: Path, device: str) -> None:
    training = build(tiny_base, device=device)
    training.joint.embedder.banks["query"].register_hook(lambda grad: grad * math.inf)
    before = weights(training)
    with pytest.raises(FloatingPointError, match="gradient norm"):
        training.step(batch(training))
    assert moved(before, weights(training)) == set()


def test_a_long_gradient_is_clipped(tiny_base: Path) -> None:
    """SGD-like: with a clip far below the norm, the norm that reaches the optimiser is the clip."""
    training = build(tiny_base, optimisation=FAST.model_copy(update={"clip": 1e-3}))
    metrics = training.step(batch(training))
    assert metrics["gradient_norm"] > 1e-2
    grads = [p.grad for p in training.joint.parameters() if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_recomputing_layers_changes_no_gradient(tiny_base: Path, device: str) -> None:
    plain = build(tiny_base, device=device)
    recomputed = build(tiny_base, device=device, gradient_checkpointing=True)
    assert recomputed.joint.embedder.backbone.model.is_gradient_checkpointing
    losses = []
    for training in (plain, recomputed):
        loss = training.joint(batch(training).to(device)).total
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    named = dict(recomputed.joint.named_parameters())
    for name, parameter in plain.joint.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_device_takes_the_step_of_the_cpu(tiny_base: Path, device: str) -> None:
    """Rows, masks and draws of whole numbers are the same wherever they stand."""
    options = {"settings": objective(match_mined=1.0, margin=0.05), "lora": LoraSettings(rank=2)}
    here, there = build(tiny_base, **options), build(tiny_base, device=device, **options)
    assert there.device.type == device
    want, got = here.step(batch(here)), there.step(batch(there))
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    # the update of a gradient near zero may have either sign
    want, got = here.step(batch(here, 1)), there.step(batch(there, 1))
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-2)


def test_learned_temperatures_stay_in_their_range_over_steps(tiny_base: Path) -> None:
    settings = objective(learn_temperatures=True, temperature_fused=0.15, temperature_maxsim=0.15)
    fast = FAST.model_copy(update={"new_learning_rate": 1.0})
    training = build(tiny_base, settings=settings, optimisation=fast)
    for step in range(3):
        training.step(batch(training, step))
        for value in training.joint.temperatures():
            assert 0.01 - 1e-6 <= float(value.detach()) <= 0.2 + 1e-6


def test_a_trained_backbone_still_generates(tiny_base: Path) -> None:
    training = build(tiny_base)
    training.step(batch(training))
    embedder = training.joint.embedder.eval()
    model, table = embedder.backbone.model, embedder.backbone.word_embeddings
    ids = torch.tensor([embedder.row_encoder.prompt.text("a red circle left of")])
    with torch.inference_mode():
        new = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        logits = model(input_ids=torch.cat([ids[0], new[:-1]])[None]).logits[0]
    # what generation says is what a plain forward says
    assert new.tolist() == logits[ids.shape[1] - 1 :].argmax(dim=-1).tolist()
    assert "forward" not in vars(table)
