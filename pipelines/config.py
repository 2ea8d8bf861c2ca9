"""The configuration of a run: every option of every stage, declared once.

`sae STAGE --help` is made from these declarations, and so is the check of a YAML file.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sae.base.config import Section
from sae.base.errors import UserError, nearest

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Section):
    name: str = Field(
        default="pocket", description="`pocket`, a folder in Hugging Face layout, a hub id"
    )
    device: str | None = Field(
        default=None, description="cpu, cuda, mps; default: the best there is"
    )
    dtype: str | None = Field(
        default=None, description="float32 or bfloat16; default: bfloat16 if native"
    )


class CorpusConfig(Section):
    source: str = Field(
        default="python",
        description="`python`, a file, folder or glob, or hf:dataset[:split[:column]]",
    )
    column: str = Field(default="text", description="text column of .jsonl and .parquet files")
    context: Count | None = Field(
        default=None, description="tokens per row; default: the model's context"
    )
    train_tokens: Count = Field(default=3_000_000, description="tokens to harvest for training")
    heldout_tokens: Count = Field(default=1_000_000, description="tokens to harvest for evaluation")
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="share of documents held out"
    )
    seed: int = Field(default=0, description="decides which documents are held out")


class HarvestConfig(Section):
    sites: tuple[str, ...] = Field(
        default=("blocks.2.hook_resid_post",), min_length=1, description="hook points to read"
    )
    batch: Count = Field(default=8, description="sequences per forward pass")
    compression: str = Field(
        default="none", description="none or zstd (8 % smaller, several times slower)"
    )


class CoderConfig(Section):
    name: str = Field(description="name of its folder", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    architecture: str = Field(default="topk", description="topk, batchtopk or relu")
    site: str | None = Field(default=None, description="one of harvest.sites; default: the first")
    width: Count | None = Field(
        default=None, description="number of latents F; default: expansion x D"
    )
    expansion: Count = Field(
        default=16, description="latents per dimension, where width is not given"
    )
    k: Count | None = Field(default=None, description="active latents per token (topk, batchtopk)")
    l1: float | None = Field(default=None, description="weight of the L1 penalty (relu)")
    learning_rate: float | None = Field(default=None, description="default: the n^-1/2 rule")
    seed: int = Field(default=0, description="of the initial weights")

    @property
    def options(self) -> dict[str, float]:
        """Hyperparameters that were given; the architecture says which it takes."""
        return {k: v for k in ("k", "l1") if (v := getattr(self, k)) is not None}


class TrainConfig(Section):
    coders: tuple[CoderConfig, ...] = (CoderConfig(name="topk", k=32),)
    sweep: dict[str, Any] = Field(
        default={},
        description="a grid of further coders: each key of a coder with one value or a list",
    )
    tokens: Count = Field(default=8_000_000, description="tokens that each coder sees")
    batch: Count = Field(default=1024, description="tokens per step")
    warmup: Share = Field(
        default=0.05, description="share of steps in which the learning rate rises"
    )
    decay: Share = Field(
        default=0.3, description="share of steps, at the end, in which it falls to 0"
    )
    auxk_coefficient: float = Field(
        default=1 / 32, ge=0, description="weight of the dead latents' loss"
    )
    auxk_k: Count | None = Field(default=None, description="dead latents per token; default: D / 2")
    dead_after: Count = Field(
        default=1_000_000, description="silent tokens that make a latent dead"
    )
    seed: int = Field(default=0, description="of the order of the data")
    window: Count = Field(default=64, description="chunks of 2 Ki rows that are shuffled together")
    checkpoint_seconds: float = Field(default=60.0, gt=0, description="time between checkpoints")
    wandb: str | None = Field(
        default=None, description="Weights & Biases project to log to as well"
    )

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides a coder's weights beside its own settings."""
        return self.model_dump(exclude={"coders", "sweep", "checkpoint_seconds", "wandb"})

    @model_validator(mode="before")
    @classmethod
    def _sweep_is_coders(cls, values: Any) -> Any:
        """The sweep's coders join those of the list; one that is there already stays as it is."""
        if not isinstance(values, dict) or not values.get("sweep"):
            return values
        from pipelines.sweep import expand

        return {**values, "coders": [*(values.get("coders") or ()), *expand(values["sweep"])]}

    @field_validator("coders")
    @classmethod
    def _names_differ(cls, coders: tuple[CoderConfig, ...]) -> tuple[CoderConfig, ...]:
        """A coder that is named twice with the same settings is one coder."""
        if not coders:
            raise ValueError("at least one coder is needed")
        named: dict[str, CoderConfig] = {}
        for coder in coders:
            if named.setdefault(coder.name, coder) != coder:
                raise UserError(
                    f"Two coders of `train.coders` and `train.sweep` are called `{coder.name}` "
                    "and differ in their settings; give the one in `train.coders` another name."
                )
        return tuple(named.values())


class EvaluateConfig(Section):
    tokens: Count = Field(
        default=1_000_000, description="held-out tokens for reconstruction and density"
    )
    loss_tokens: Count = Field(
        default=65_536, description="held-out tokens for the language model's loss"
    )
    seed: int = Field(default=0, description="of the bootstrap and the random control")


class IndexConfig(Section):
    tokens: Count = Field(default=1_500_000, description="tokens whose activations are indexed")


class ExportConfig(Section):
    format: str = Field(default="hdf5", pattern="^hdf5$", description="hdf5")
    features: str | None = Field(
        default=None, description="which features: ids, label:TEXT, density>1e-4, @filter.json"
    )


class RunConfig(Section):
    """A whole run. `folder` receives everything that is made."""

    folder: Path = Field(default=Path("runs/demo"), description="where everything is written")
    model: ModelConfig = ModelConfig()
    corpus: CorpusConfig = CorpusConfig()
    harvest: HarvestConfig = HarvestConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _sites_are_harvested(self) -> "RunConfig":
        for coder in self.train.coders:
            if coder.site is not None and coder.site not in self.harvest.sites:
                raise UserError(
                    f"The coder `{coder.name}` reads `{coder.site}`, which is not in "
                    f"`harvest.sites`; add it there." + nearest(coder.site, self.harvest.sites)
                )
        return self

    def site_of(self, coder: CoderConfig) -> str:
        return coder.site or self.harvest.sites[0]

    @property
    def store(self) -> Path:
        return self.folder / "activations.zarr"

    def coder_folder(self, name: str) -> Path:
        return self.folder / "coders" / name
