"""What the pretended device refuses is what CUDA refuses: these run on a real one, too."""

from pathlib import Path

import pytest
import torch

from tests.tiny import new_embedder, picture

pytestmark = pytest.mark.gpu


def test_what_is_computed_is_what_the_cpu_computes() -> None:
    here = torch.arange(12.0).view(3, 4)
    there = here.to("cuda")
    assert there.device.type == "cuda"
    torch.testing.assert_close((there @ there.T).softmax(1).cpu(), (here @ here.T).softmax(1))
    there[torch.tensor([0, 2])] = 7.0  # indices may stay behind
    assert there.sum().item() == 8 * 7 + 4 + 5 + 6 + 7


def test_tensors_of_two_devices_do_not_meet() -> None:
    there = torch.ones(3, device="cuda")
    assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]  # a number may stay behind
    with pytest.raises(RuntimeError):
        there + torch.ones(3)
    with pytest.raises(RuntimeError):
        torch.ones(3)[torch.tensor([0], device="cuda")]
    with pytest.raises(RuntimeError):
        there[torch.tensor([0, 1])] = torch.ones(2)
    with pytest.raises(TypeError):
        there.numpy()


def test_integers_are_multiplied_in_their_own_way_alone() -> None:
    bytes_there = torch.ones(32, 16, dtype=torch.int8, device="cuda")
    with pytest.raises(RuntimeError):
        bytes_there @ bytes_there.T
    assert torch._int_mm(bytes_there, bytes_there.T).unique().tolist() == [16]
    with pytest.raises(RuntimeError):
        torch._int_mm(bytes_there[:16], bytes_there.T)


def test_gradients_arrive_where_the_weights_are() -> None:
    weight = torch.nn.Parameter(torch.full((4,), 2.0, device="cuda"))
    (weight.square().sum() * 3).backward()
    assert weight.grad is not None
    assert weight.grad.device.type == "cuda"
    assert weight.grad.tolist() == [12.0] * 4


def test_a_model_embeds_and_answers_as_on_the_cpu(tiny_base: Path) -> None:
    documents = ["a red circle", picture("red"), ["x", picture("blue"), "left of"]]
    queries = ["red circle", picture("blue")]
    found = []
    for where in ("cpu", "cuda"):
        model = new_embedder(tiny_base).to(where)
        query, document = model.encode_query(queries), model.encode_document(documents)
        assert document.fused is not None and query.fused is not None
        assert document.vectors.device.type == where
        odds = model.match(query.fused, document.fused.expand(2, -1, -1))
        scores = [model.similarity(query, document, name) for name in ("fused", "1x1", "4x6")]
        found.append([odds.cpu(), *(some.cpu() for some in scores)])
    torch.testing.assert_close(found[1], found[0], atol=2e-4, rtol=2e-4)
