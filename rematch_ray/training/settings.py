"""What can be set about the objective and the optimiser; presets of the papers. Middle floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "joint": {},
    "rematch": {"w_groups": 0.0, "hard_negatives": "pooled"},
    "metaembed": {
        "w_fused": 0.0,
        "w_orth": 0.0,
        "w_match": 0.0,
        "maxsim_reduce": "sum",
    },
}


TEMPERATURE_RANGE: Final = (0.01, 0.2)
"""Where learned temperatures stay."""


class ObjectiveSettings(BaseModel):
    """The joint objective; a preset fills what is not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: Literal["joint", "rematch", "metaembed"] = "joint"
    """Both papers together, or one of them alone; keys given beside it win."""
    w_fused: float = Field(default=1.0, ge=0)
    """Weight of InfoNCE over the fused vector; 0 builds a model without a fused vector."""
    w_groups: float = Field(default=1.0, ge=0)
    """Weight of the mean over budgets of InfoNCE over MaxSim."""
    w_orth: float = Field(default=0.5, ge=0)
    """Weight of the orthogonality of the meta tokens' states."""
    w_match: float = Field(default=0.1, ge=0)
    """Weight of the Yes/No matching stage; 0 leaves it out."""
    temperature_fused: float = Field(default=0.02, gt=0)
    """Divides fused cosines."""
    temperature_maxsim: float = Field(default=0.03, gt=0)
    """Divides MaxSim scores."""
    learn_temperatures: bool = False
    """Train both temperatures, inside [0.01, 0.2]; they must begin there."""
    maxsim_reduce: Literal["mean", "sum"] = "mean"
    """MaxSim in training is the mean or the sum over the query vectors."""
    train_reduce: Literal["max"] = "max"
    """How a query vector meets the document vectors in training; only `max` is built."""
    hard_negatives: Literal["private", "pooled"] = "private"
    """A row's hard negatives are seen by its own query, or by every query of every rank."""
    margin: float | None = None
    """Drop in-batch candidates whose fused cosine is within this of the positive's; null = none."""
    orth_tokens: Literal["fused", "all"] = "fused"
    """Orthogonality over the first `fuse_k` states, or over the whole bank."""
    orth_space: Literal["state", "vector"] = "state"
    """Orthogonality of the hidden states, or of the projected vectors."""
    match_form: Literal["shared_kv", "packed"] = "shared_kv"
    """Matching from the keys and values of the embedding pass, or in a second pass over all rows
    (the reference, twice the work); both give the same gradients."""
    match_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows that take part in matching, the same on every rank."""
    match_mined: float = Field(default=0.5, ge=0, le=1)
    """Probability that the matching negative comes from the batch, not from the hard negatives."""
    match_temperature: float = Field(default=0.05, gt=0)
    """Sharpness of that draw: in proportion to exp(fused cosine / this)."""
    z_tokens: Literal[1] = 1
    """Input tokens that an embedding becomes in matching; only 1 (the fused vector) is built."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values

    @model_validator(mode="after")
    def _terms_fit(self) -> ObjectiveSettings:
        if not (self.w_fused or self.w_groups):
            raise ValueError(
                "w_fused and w_groups are both 0: one of them must train the retrieval"
            )
        if self.w_match and not self.w_fused:
            raise ValueError("w_match needs the fused vector: set w_fused above 0 or w_match to 0")
        if self.margin is not None and not self.w_fused:
            raise ValueError("margin is judged on the fused cosine: set w_fused above 0")
        return self

    @model_validator(mode="after")
    def _learned_temperatures_begin_inside(self) -> ObjectiveSettings:
        least, most = TEMPERATURE_RANGE
        for key in ("temperature_fused", "temperature_maxsim"):
            given = getattr(self, key)
            if self.learn_temperatures and not least <= given <= most:
                raise ValueError(
                    f"{key} is {given:g}, and learned temperatures stay in [{least:g}, {most:g}]: "
                    "begin inside, or set learn_temperatures to false"
                )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight per named loss term."""
        return {
            "fused": self.w_fused,
            "groups": self.w_groups,
            "orthogonality": self.w_orth,
            "matching": self.w_match,
        }


class OptimisationSettings(BaseModel):
    """AdamW with linear warm-up."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak rate of the backbone's trained weights."""
    new_learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate of banks, heads, roles and temperatures; null = ten times the other."""
    weight_decay: float = Field(default=0.0, ge=0)
    """On the backbone's matrices; never on banks and heads."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averages."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of the linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after the warm-up."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak that is left at the last step."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    chunk_tokens: int | None = Field(default=None, gt=0)
    """Tokens (padding included) encoded at a time: memory then stays that of one chunk however
    large the batch, for one more forward pass (gradient cache); null = the whole batch at once.
    The matching stage's own tokens come on top (docs/step.md)."""
    accumulation: int = Field(default=1, gt=0)
    """Parts of a step that are trained one after another, each against its own negatives of all
    ranks; `chunk_tokens` saves as much memory and keeps the negatives of the whole batch."""
    probe_every: int = Field(default=25, ge=0)
    """Steps between measurements of each budget's gradient at the vectors; 0 never measures."""
