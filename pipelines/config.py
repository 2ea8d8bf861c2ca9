"""The configuration of a run: every option of every stage, declared once.

`sae STAGE --help` is made from these declarations, and so is the check of a YAML file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.recipes import RECIPES
from sae.base.config import Section
from sae.base.errors import UserError, nearest

OPTIONS = (
    "k", "l1", "l1_warmup", "target_l0", "l0_penalty", "bandwidth", "prefixes",
    "steps", "max_iterations", "residual_threshold", "experts", "load_balance",
)  # fmt: skip
Count = Annotated[int, Field(ge=1, le=10**15)]  # beyond that, bytes and rows are no int64
Size = Annotated[int, Field(ge=1, le=2**24)]  # of what is in memory as a whole
Share = Annotated[float, Field(ge=0, le=1)]
Clip = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ModelConfig(Section):
    name: str = Field(
        default="pocket", description="`pocket`, a folder in Hugging Face layout, a hub id"
    )
    device: str | None = Field(
        default=None, description="cpu, cuda, cuda:N or mps (untried); default: cuda, or else cpu"
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
    context: Size | None = Field(
        default=None, description="tokens per row; default: the model's context"
    )
    train_tokens: Count = Field(default=3_000_000, description="tokens to harvest for training")
    heldout_tokens: Count = Field(default=1_000_000, description="tokens to harvest for evaluation")
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="share of documents held out"
    )
    seed: Seed = Field(default=0, description="decides which documents are held out")


class HarvestConfig(Section):
    sites: tuple[str, ...] = Field(
        default=("blocks.2.hook_resid_post",), min_length=1, description="hook points to read"
    )
    batch: Size = Field(default=8, description="sequences per forward pass")
    compression: str = Field(
        default="none",
        pattern="^(none|zstd)$",
        description="none or zstd (8 % smaller, several times slower)",
    )


class CoderConfig(Section):
    """One coder. What is not given comes from its recipe, then from the architecture.

    `options` are the hyperparameters of the architecture; one that it does not have is an error.
    """

    name: str = Field(
        description="name of its folder", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100
    )
    recipe: str | None = Field(
        default=None, description=f"published settings to start from: {', '.join(RECIPES)}"
    )
    architecture: str = Field(
        default="topk",
        description="topk, batchtopk, matryoshka, jumprelu, gated, relu, relu_unconstrained, ista, matching_pursuit, switch, transcoder, skip_transcoder, relu_transcoder, relu_skip_transcoder",
    )
    site: str | None = Field(default=None, description="one of harvest.sites; default: the first")
    target_site: str | None = Field(
        default=None, description="what a transcoder predicts: another one of harvest.sites"
    )
    width: Size | None = Field(
        default=None, description="number of latents F; default: expansion x D"
    )
    expansion: Size = Field(
        default=16, description="latents per dimension, where width is not given"
    )
    k: Size | None = Field(
        default=None,
        description="active latents per token (topk, batchtopk, matryoshka, switch, transcoder)",
    )
    l1: float | None = Field(
        default=None,
        description="weight of the L1 penalty (relu, relu_unconstrained, gated, relu_transcoder, ista)",
    )
    l1_warmup: Share | None = Field(
        default=None,
        description="share of steps in which that weight rises (relu, relu_unconstrained, gated)",
    )
    target_l0: float | None = Field(
        default=None, description="active latents per token to steer to (jumprelu)"
    )
    l0_penalty: float | None = Field(
        default=None, description="price of an active latent, without a target (jumprelu)"
    )
    bandwidth: float | None = Field(
        default=None, description="width of the threshold's gradient (jumprelu)"
    )
    prefixes: tuple[Share, ...] | None = Field(
        default=None, description="nested dictionaries, in shares of the latents (matryoshka)"
    )
    steps: Size | None = Field(default=None, description="unrolled steps (ista)")
    max_iterations: Size | None = Field(
        default=None, description="most latents per token (matching_pursuit)"
    )
    residual_threshold: float | None = Field(
        default=None, ge=0, description="norm of what is left at which to end (matching_pursuit)"
    )
    experts: Size | None = Field(default=None, description="parts of the dictionary (switch)")
    load_balance: float | None = Field(
        default=None, ge=0, description="weight of the experts' even use (switch)"
    )
    learning_rate: float | None = Field(default=None, description="default: the n^-1/2 rule")
    warmup: Share | None = Field(default=None, description="default: train.warmup")
    decay: Share | None = Field(default=None, description="default: train.decay")
    grad_clip: Clip | None = Field(default=None, description="default: train.grad_clip")
    grad_clip_of: Literal["per_dimension", "summed"] = Field(
        default="per_dimension",
        description="whose gradient: of the loss per dimension, or, as in papers, summed over them",
    )
    centre: Literal["mean", "geometric_median"] = Field(
        default="mean", description="where b_dec starts: mean or geometric_median"
    )
    resample: tuple[Share, ...] = Field(
        default=(), description="when dead latents start again, in shares of steps (relu)"
    )
    resample_window: Share = Field(
        default=0.0125, description="share of steps without firing that makes a latent dead then"
    )
    seed: Seed = Field(default=0, description="of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _recipe_fills_in(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("recipe") is None:
            return values
        recipe = str(values["recipe"])
        if recipe not in RECIPES:
            raise ValueError(
                f"unknown recipe `{recipe}`; it must be one of {', '.join(RECIPES)}."
                + nearest(recipe, RECIPES)
            )
        return {**RECIPES[recipe], **values}

    @property
    def options(self) -> dict[str, Any]:
        """Hyperparameters that were given; the architecture says which it takes."""
        return {k: v for k in OPTIONS if (v := getattr(self, k)) is not None}


class TrainConfig(Section):
    coders: tuple[CoderConfig, ...] = (CoderConfig(name="topk", k=32),)
    sweep: dict[str, Any] = Field(
        default={},
        description="a grid of further coders: each key of a coder with one value or a list",
    )
    tokens: Count = Field(default=8_000_000, description="tokens that each coder sees")
    batch: Size = Field(default=1024, description="tokens per step")
    warmup: Share = Field(
        default=0.05, description="share of steps in which the learning rate rises"
    )
    decay: Share = Field(
        default=0.3, description="share of steps, at the end, in which it falls to 0"
    )
    grad_clip: Clip = Field(
        default=1.0, description="largest norm of a coder's gradient; 0: it is not clipped"
    )
    auxk_coefficient: float = Field(
        default=1 / 32, ge=0, description="weight of the dead latents' loss"
    )
    auxk_k: Size | None = Field(default=None, description="dead latents per token; default: D / 2")
    dead_after: Count | None = Field(
        default=None,
        description="silent tokens that make a latent dead; default: a tenth of all, at most 10 M",
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="running average of the weights, saved in their place"
    )
    moments: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="precision of Adam's moments: float32, bfloat16; auto: by the coder's size",
    )
    seed: Seed = Field(default=0, description="of the order of the data")
    window: Size = Field(default=64, description="chunks of 2 Ki rows that are shuffled together")
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
            if coder.name.lower() == "report" or coder.name.endswith((".old", ".partial")):
                # evaluation/report.html is of all coders; the others are folders in the making
                raise UserError(f"A coder cannot be called `{coder.name}`; give it another name.")
            if named.setdefault(coder.name, coder) != coder:
                raise UserError(
                    f"Two coders of `train.coders` and `train.sweep` are called `{coder.name}` "
                    "and differ in their settings; give the one in `train.coders` another name."
                )
        return tuple(named.values())


class EvaluateConfig(Section):
    quick: bool = Field(
        default=False, description="fewer tokens, and no controls that take minutes to train"
    )
    tokens: Count | None = Field(
        default=None,
        description="held-out tokens for reconstruction and density; default: 1,000,000, "
        "quick 98,304",
    )
    loss_tokens: Count | None = Field(
        default=None,
        description="held-out tokens for the language model's loss; default: 65,536, quick 8,192",
    )
    controls: tuple[str, ...] | None = Field(
        default=None,
        description="what the coder is compared with; default: all that say something of it",
    )
    seed: Seed = Field(default=0, description="of the bootstrap and the controls")


class IndexConfig(Section):
    tokens: Count = Field(default=1_500_000, description="tokens whose activations are indexed")


class ScorecardConfig(Section):
    tokens: Count = Field(
        default=32_768, description="firings at which a feature is taken out, over all features"
    )
    seed: Seed = Field(default=0, description="of the choice among a feature's firings")


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
    scorecard: ScorecardConfig = ScorecardConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _sites_are_harvested(self) -> "RunConfig":
        for coder in self.train.coders:
            for does, site in (("reads", coder.site), ("predicts", coder.target_site)):
                if site is not None and site not in self.harvest.sites:
                    raise UserError(
                        f"The coder `{coder.name}` {does} `{site}`, which is not in "
                        f"`harvest.sites`; add it there." + nearest(site, self.harvest.sites)
                    )
        return self

    def site_of(self, coder: CoderConfig) -> str:
        return coder.site or self.harvest.sites[0]

    def training_of(self, coder: CoderConfig) -> dict[str, Any]:
        """What decides its weights beside `train.recipe`, the activations and the code."""
        return {**coder.model_dump(), "site": self.site_of(coder)}

    @property
    def store(self) -> Path:
        return self.folder / "activations.zarr"

    def coder_folder(self, name: str) -> Path:
        return self.folder / "coders" / name
