"""Items -> nested multi-vectors and one fused vector: what users hold in their hands.

Appends a bank of meta tokens to each row as input embeddings, reads their last hidden states and
projects them. Knows the backbone and the template; nothing of losses, training, Ray or indexes.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rematch_ray.data.collate import Batch, collate
from rematch_ray.data.inputs import as_items
from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import EncodedRow, RowEncoder
from rematch_ray.errors import UserError
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.embeddings import Embeddings, Encoded
from rematch_ray.model.keys_values import KeysValues, KeyValueRecorder
from rematch_ray.model.matcher import Matcher, embedding_log_odds
from rematch_ray.model.settings import ModelIdentity, ModelSettings
from rematch_ray.scoring.budget import Budget, Ladder
from rematch_ray.scoring.maxsim import Reduce, fused_scores, maxsim

__all__ = ["Embedder", "Embeddings", "Encoded", "ModelIdentity", "ModelSettings"]


class Embedder(nn.Module):
    """A trained embedder: `encode_query`, `encode_document`, `similarity`.

    Args:
        backbone: the MLLM.
        row_encoder: processors and template.
        settings: what the model was built with.
        has_fused: whether a fused vector is trained and stored.
        name: the run's name, for people.
    """

    def __init__(
        self,
        backbone: Backbone,
        row_encoder: RowEncoder,
        settings: ModelSettings,
        *,
        has_fused: bool = True,
        name: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.row_encoder = row_encoder
        self.template = row_encoder.prompt.template
        self.settings = settings.model_copy(update={"template": self.template})
        self.name = name
        self.ladder: Ladder = settings.budgets
        self.identity: ModelIdentity | None = None
        hidden_dim = backbone.hidden_dim
        table = backbone.word_embeddings.weight.detach().float()
        self.banks = nn.ParameterDict(
            {
                side: nn.Parameter(torch.randn(self.num_vectors(side), hidden_dim) * table.std())
                for side in ("query", "document")
            }
        )
        self.vector_projection = _projection(hidden_dim, settings.embedding_dim)
        self.embedding_dim: int = settings.embedding_dim or hidden_dim
        self.fused_dim: int | None = None
        self.fused_projection: nn.Module | None = None
        self.matcher: Matcher | None = None
        if has_fused:
            self.fused_dim = settings.fused_width(hidden_dim)
            self.fused_projection = _projection(hidden_dim, self.fused_dim, identity=True)
            self.matcher = Matcher(self.fused_dim, hidden_dim, float(table.norm(dim=1).mean()))

    @classmethod
    def build(cls, settings: ModelSettings, *, has_fused: bool = True, name: str = "") -> Embedder:
        """An embedder to train: new banks and heads on a base model, or those of an export.

        Raises:
            UserError: `settings.base` is neither, or an export of other sizes.
        """
        from rematch_ray.model.starting import find_start

        start = find_start(settings.base)
        backbone = Backbone.load(start.backbone, dtype=getattr(torch, settings.dtype))
        encoder = start.row_encoder(settings)
        embedder = cls(backbone, encoder, settings, has_fused=has_fused, name=name)
        start.load_heads(embedder)
        return embedder

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | None = None) -> Embedder:
        """Loads an export, or the best export of a run directory.

        Args:
            path: export directory, run directory or hub id.
            device: where to put it; None = CUDA when there is one, else CPU.

        Raises:
            UserError: not an embedder, or files that do not fit together.
        """
        from rematch_ray.model.checkpoint import load_embedder

        model = load_embedder(path)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return model.to(chosen).eval()

    def save_pretrained(
        self, path: str | Path, *, state: Mapping[str, Tensor] | None = None
    ) -> ModelIdentity:
        """Writes an export (safetensors, processor, template); returns its identity.

        Args:
            path: folder to write.
            state: whole weights by this model's names, where they are spread over ranks.
        """
        from rematch_ray.model.checkpoint import save_embedder

        return save_embedder(self, path, state=state)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads an export of this model to the Hugging Face hub; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repo_id, exist_ok=True, **options)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    @property
    def has_fused(self) -> bool:
        """Whether items have a fused vector."""
        return self.fused_dim is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.banks["query"].device

    def num_vectors(self, side: Side) -> int:
        """R, the meta tokens of a side."""
        if side == "query":
            return self.ladder.num_query_vectors
        return self.ladder.num_document_vectors

    def instruction_for(self, side: Side, source: str = "") -> str:
        """The default instruction of a training source, "" when none was recorded."""
        return self.settings.instructions.get(source, {}).get(side, "")

    def encode_rows(self, batch: Batch, side: Side, *, record: bool = False) -> Encoded:
        """One forward pass with gradients (in training) over rows of one side.

        Args:
            batch: rows of `side`, R meta columns each.
            side: which bank is inserted.
            record: keep the decoder's keys and values for the shared form of the matching stage,
                instead of the input embeddings for the packed one.

        Returns:
            Encoded.
        """
        embeds, deep = self.backbone.embed(
            batch.input_ids, batch.pixel_values, batch.image_grid_thw
        )
        rows = torch.arange(len(batch), device=embeds.device)[:, None]
        bank = self.banks[side].to(embeds.dtype).expand(len(batch), -1, -1)
        embeds = embeds.index_put((rows, batch.meta_positions), bank)
        recorder = KeyValueRecorder() if record else None
        hidden = self.backbone.decode(embeds, batch.position_ids, deep=deep, cache=recorder)
        states = hidden[rows, batch.meta_positions].float()
        vectors = F.normalize(self.vector_projection(states), dim=-1)
        fused = None
        if self.fused_projection is not None:
            mean = states[:, : self.settings.fuse_k].mean(dim=1)
            fused = F.normalize(self.fused_projection(mean), dim=-1)
        if recorder is None:
            return Encoded(vectors, fused, states, batch, inputs_embeds=embeds, deep=deep)
        kept = KeysValues(recorder.recorded)
        return Encoded(vectors, fused, states, batch, keys_values=kept)

    @torch.inference_mode()
    def embed(self, batch: Batch, side: Side) -> Embeddings:
        """Embeddings of a batch without gradients, on the model's device."""
        encoded = self.encode_rows(batch.to(self.device), side)
        return Embeddings(encoded.vectors, encoded.fused)

    def batch(self, rows: Sequence[EncodedRow], side: Side) -> Batch:
        """Pads rows for this model's bank of one side."""
        return collate(rows, num_meta=self.num_vectors(side), pad_id=self.row_encoder.prompt.pad)

    def encode_query(
        self,
        inputs: Sequence[Any] | Any,
        *,
        instruction: str | None = None,
        batch_size: int = 32,
    ) -> Embeddings:
        """Embeds queries.

        Args:
            inputs: a list of str, image (PIL or bytes), Item, or lists mixing text and images.
            instruction: None = the default recorded with the model, "" = none.
            batch_size: items per forward pass.

        Returns:
            Embeddings with R_q vectors per item.

        Raises:
            UserError: an input of another kind, or an image that cannot be decoded.
        """
        return self.encode(inputs, "query", instruction=instruction, batch_size=batch_size)

    def encode_document(
        self,
        inputs: Sequence[Any] | Any,
        *,
        instruction: str | None = None,
        batch_size: int = 32,
    ) -> Embeddings:
        """Embeds documents; as `encode_query`, with R_d vectors per item."""
        return self.encode(inputs, "document", instruction=instruction, batch_size=batch_size)

    def encode(
        self,
        inputs: Sequence[Any] | Any,
        side: Side,
        *,
        instruction: str | None = None,
        batch_size: int = 32,
    ) -> Embeddings:
        """Embeds items of one side, similar lengths together, in the order given."""
        items = as_items(inputs)
        if not items:
            raise UserError("nothing to encode: pass at least one text, image or item")
        texts = [
            self.instruction_for(side, item.source) if instruction is None else instruction
            for item in items
        ]
        rows = [
            self.row_encoder.encode(item, side, text)
            for item, text in zip(items, texts, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        with evaluating(self):
            parts = [
                self.embed(self.batch([rows[index] for index in chunk], side), side)
                for chunk in _chunks(order, batch_size)
            ]
        inverse = torch.empty(len(order), dtype=torch.int64)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        together = Embeddings.concatenate(parts)
        return Embeddings(
            together.vectors[inverse], None if together.fused is None else together.fused[inverse]
        )

    def similarity(
        self,
        query: Embeddings,
        document: Embeddings,
        budget: str | Budget | None = None,
        *,
        reduce: Reduce = "mean",
    ) -> Tensor:
        """Scores every query against every document at a budget.

        Returns:
            (N_q, N_d) float32; with `mean` in -1..1 at every budget.

        Raises:
            UserError: the budget is not a rung of this model.
        """
        chosen = self.ladder.resolve(budget, has_fused=query.fused is not None)
        with torch.inference_mode():
            if chosen.is_fused:
                assert query.fused is not None and document.fused is not None
                return fused_scores(query.fused, document.fused)
            return maxsim(query.vectors, document.vectors, chosen, reduce=reduce)

    @torch.inference_mode()
    def match(self, query_fused: Tensor, document_fused: Tensor, *, chunk: int = 256) -> Tensor:
        """The matching stage's answer from stored fused vectors alone.

        Args:
            query_fused: (b, F).
            document_fused: (b, N, F), N documents of each query.
            chunk: pairs per forward pass.

        Returns:
            (b, N) float32, log p(Yes) - log p(No).

        Raises:
            UserError: the model has no fused vector.
        """
        if self.matcher is None:
            raise UserError("this model was trained without a fused vector, so it cannot match")
        num_queries, num_documents, _ = document_fused.shape
        queries = query_fused[:, None].expand(-1, num_documents, -1).flatten(0, 1)
        documents = document_fused.flatten(0, 1)
        parts = [
            embedding_log_odds(
                self.backbone, self.matcher, self.row_encoder.prompt, query, document
            )
            for query, document in zip(queries.split(chunk), documents.split(chunk), strict=True)
        ]
        return torch.cat(parts).view(num_queries, num_documents)


def _projection(hidden_dim: int, dim: int | None, *, identity: bool = False) -> nn.Module:
    """Linear map to `dim` without bias; none (null) or an identity start when the width stays."""
    if dim is None:
        return nn.Identity()
    layer = nn.Linear(hidden_dim, dim, bias=False)
    if identity and dim == hidden_dim:
        nn.init.eye_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight)
    return layer


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


class evaluating(AbstractContextManager[None]):
    """Puts a module into evaluation mode and back."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._was_training = module.training

    def __enter__(self) -> None:
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        self._module.train(self._was_training)
