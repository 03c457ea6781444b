"""The settings of a run, and the presets ``paper``, ``release`` and ``tiny``; ``presets`` has all of them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from recipes.shared.settings import RunSettings, Sampling, TrainSettings

MODALITIES = ("xray", "ct", "mri", "ultrasound", "pathology", "fundus")
"""The six kinds of image of the public release; expert k is meant for the k-th."""

RouteOn = Literal["image", "text", "label"]
LocalBranch = Literal["experts", "one-expert", "map", "none"]
Preset = Literal[
    "paper", "release", "tiny",
    "clip", "convirt", "medclip", "gloria", "one-expert",
    "clip-tiny", "convirt-tiny", "medclip-tiny", "gloria-tiny", "one-expert-tiny",
]  # fmt: skip


@dataclass(frozen=True)
class PhantomConfig:
    """Sizes of the drawn data set; used with --data phantom only."""

    train_studies: int = 1600
    """Pairs drawn for training."""
    val_studies: int = 240
    """Pairs drawn for validation."""
    test_studies: int = 480
    """Pairs drawn for testing."""


@dataclass(frozen=True)
class ManifestConfig:
    """How to read a csv of your own images and texts; used with --data FILE.csv only."""

    image_column: str = "image"
    """Column with the image's path, relative to --image-root."""
    image_root: Path | None = None
    """Folder at which the paths of the images begin; the csv's own by default."""
    text_column: str = "text"
    """Column with the report or caption."""
    modality_column: str | None = "modality"
    """Column with the kind of the image; a blank cell is one that is not known."""
    split_column: str | None = "split"
    """Column of train, val and test; None draws a split by group."""
    split_seed: int = 0
    """Seed of a drawn split."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test in a drawn split."""
    group_column: str | None = None
    """Column that identifies the patient."""
    on_bad_image: Literal["error", "skip"] = "error"
    """Whether an unreadable image stops the run, or is skipped and counted."""
    on_missing_text: Literal["error", "skip"] = "error"
    """Whether a row without a text stops the run, or is skipped and counted."""


@dataclass(frozen=True)
class ShardConfig:
    """How to read WebDataset tars; used with --data PATTERN.tar only."""

    val_shards: str = ""
    """Tars of the validation split: a path, a glob, or a brace pattern."""
    test_shards: str = ""
    """Tars of the test split."""
    steps_per_epoch: int | None = None
    """Optimiser steps between two checkpoints; None: once through all pairs. Passes go on where an epoch ends."""
    text_key: str = "text"
    """Name of the text in each sample's .json."""
    shuffle_buffer: int = 1000
    """How far a pair may move from its place in the tars, in pairs."""


@dataclass(frozen=True)
class DataConfig:
    """Where pairs come from."""

    data: str = "phantom"
    """phantom (drawn on the fly), a .csv, or WebDataset tars (train-{0000..0099}.tar)."""
    modality: str | None = None
    """Kind of all images, where the data do not name it."""
    force_dicom: bool = False
    """Read DICOM files without preamble and file meta group, as old programs wrote them."""
    verify_images: bool = False
    """Read every image of a .csv once before training, and list those that cannot be read."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    manifest: ManifestConfig = field(default_factory=ManifestConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture."""

    modalities: tuple[str, ...] = MODALITIES
    """Kinds of image that the router is taught; expert k is meant for the k-th."""
    num_experts: int = 6
    """Number of experts, K; at least one per modality."""
    image_encoder: str = "swin_tiny_patch4_window7_224"
    """Any timm name with a pyramid of four scales, a local folder (timm's save_for_hf), or hf-hub:owner/name."""
    image_weights: str = "hub"
    """hub (pretrained), random, or a file with a state dict: timm's or MedCLIP's."""
    image_size: int = 224
    """Side of the square input, in pixels."""
    image_pooling: Literal["mean", "max"] = "mean"
    """How the coarsest map becomes the global vector of an image."""
    text_encoder: str = "emilyalsentzer/Bio_ClinicalBERT"
    """A transformers hub id, a local folder, or tiny-bert."""
    text_weights: Literal["hub", "random"] = "hub"
    """Pretrained weights, or the architecture alone; the encoder tiny-bert is always random."""
    text_frozen: bool = True
    """Whether the text encoder stays as it is; what projects its states is always trained."""
    text_tokens: int = 25
    """Longest text, in tokens; the rest is cut off."""
    text_pooling: Literal["mean", "first", "max"] = "mean"
    """How the tokens of a report become one vector."""
    word_pieces: Literal["sum", "mean"] = "sum"
    """How the pieces of a word become one vector."""
    dim: int = 768
    """Width of the space in which images and texts meet."""
    projection: Literal["linear", "mlp"] = "linear"
    """What maps whole images and texts into that space: one matrix, or two with a ReLU."""
    learned_scale: bool = False
    """Whether the factor of the cosines of whole images and texts, the third temperature, is trained (at most 100)."""
    local_branch: LocalBranch = "experts"
    """What gives the regions that words attend to: one of the experts, chosen for each image; one expert for all
    images; GLoRIA's projection of the map of align-to; or none, so that only whole images and texts are compared."""
    expert_dim: int = 192
    """Width inside an expert."""
    expert_depth: int = 3
    """3x3 convolutions of an expert, each with a norm and a ReLU."""
    expert_norm: Literal["batch", "group"] = "batch"
    """Norm of the convolutions."""
    align_to: int = 1
    """Scale to which the pyramid is aligned, from 0 (finest): 1 gives 28 x 28 regions at 224 px."""
    scale_logits: Literal["own", "aligned"] = "own"
    """Whether scale attention is computed at each scale's own resolution, or after alignment (dearer)."""
    local_scales: tuple[int, ...] = ()
    """Scales that the experts read, from 0 (finest), with that of align-to; none: all. The two finest give maps that
    point: a place of the coarsest scale sees the whole image."""
    attention: Literal["dot", "cosine"] = "dot"
    """How words and regions are compared for attention: by products, as printed, or by cosines."""
    learned_temperature: bool = False
    """Whether the first temperature is trained; it starts at the one given. Not with the report form."""
    mask_padding: bool = False
    """Whether the black bars of letter-boxed images are left out of attention and local contrast."""
    route_on: RouteOn = "image"
    """What chooses the expert: the image, the report, or the known modality."""
    router_hidden_dim: int = 256
    """Hidden width of the router."""
    router_gradient: Literal["scale", "straight_through", "none"] = "none"
    """Whether the losses reach the router too, besides the supervision by modality."""
    temperatures: tuple[float, float, float] = (4.0, 5.0, 10.0)
    """GLoRIA's three: attention over regions, words of a report, logits. They multiply."""
    word_softmax: bool = True
    """Whether the words of a report compete for a region before regions compete for a word, as in GLoRIA's code. The
    papers print the second softmax alone; the report form has that one only."""


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """How it is trained."""

    epochs: int = 50
    """Passes over the training split."""
    batch_size: int = 32
    """Pairs per step, device and micro-batch."""
    accumulate: int = 10
    """Micro-batches per optimiser step; each is a contrast of its own, or all are one (--grad-cache)."""
    grad_cache: bool = False
    """Contrast all pairs of an optimiser step, batch-size x accumulate on each device, in the memory of a micro-batch:
    GradCache, which computes the model twice."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam adds its weight decay to the gradient, AdamW to the weights."""
    lr: float = 5e-5
    """Learning rate."""
    weight_decay: float = 1e-6
    """On the weight matrices of linear, convolutional and expert layers."""
    clip_norm: float = 0.25
    """Largest norm of the gradient; 0 for no limit."""
    global_weight: float = 1.0
    """Coefficient of the global loss, both directions added."""
    global_directions: Literal["both", "image-to-text"] = "both"
    """The paper prints one direction."""
    image_to_text_weight: float = 0.5
    """Share of the direction from image to text where both are taken; the rest is of the other one."""
    global_targets: Literal["pairs", "findings"] = "pairs"
    """What whole images and texts are matched by: their being a pair, or how far the findings that their reports name
    agree (MedCLIP's soft targets)."""
    findings: tuple[str, ...] = ()
    """Names of these findings, as reports write them; by default those that drawn data have, or of other data the words
    that are in several reports but not in most."""
    local_weight: float = 1.0
    """Coefficient of the local loss, both directions added."""
    local_form: Literal["batch", "report"] = "batch"
    """GLoRIA's contrast of reports over the batch, or the printed contrast of words within each report."""
    word_aggregation: Literal["mean", "sum"] = "mean"
    """How the words' scores of a report are put together; a sum favours long reports."""
    router_weight: float = 1.0
    """Coefficient λ of the supervision of the router by the modality."""
    balance_weight: float = 0.0
    """Coefficient of the load-balancing loss, for data without modalities."""
    gather: bool = True
    """Whether the global loss contrasts over all devices."""
    gather_local: bool = False
    """Whether the batch form of the local loss does too: its work on each device grows with their number."""
    sampling: Sampling = "shuffled"
    """Order of the training pairs: any (shuffled); each batch of each device holds the modalities as the data do
    (stratified), or all alike, so that every expert has work (balanced: pairs of rare ones come several times)."""
    patience: int = 10
    """Stop after so many epochs without a better validation loss."""


@dataclass(frozen=True)
class Config(RunSettings):
    """A run."""

    preset: Preset = "paper"
    """Where the defaults come from."""
    out: Path = Path("runs/medmoe")
    """Folder of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def paper() -> Config:
    """Returns what the paper prints, where it can be computed: routing by report, contrast of words within a report."""
    model = ModelConfig(route_on="text")
    train = TrainConfig(global_directions="image-to-text", local_form="report", word_aggregation="sum", devices=8)
    return Config(preset="paper", model=model, train=train)


def release() -> Config:
    """Returns what the release settles: K=6, routed by the image, weights 0.5, 0.5, 2.0, temperatures 4, 5, 10."""
    train = TrainConfig(global_weight=0.5, local_weight=0.5, router_weight=2.0, word_aggregation="sum")
    return Config(preset="release", train=train)


def tiny() -> Config:
    """Returns settings with small encoders from scratch, for a laptop CPU; the demo."""
    model = ModelConfig(
        image_encoder="test_resnet",
        image_weights="random",
        image_size=96,
        text_encoder="tiny-bert",
        text_weights="random",
        text_frozen=True,  # random states that keep the words apart; a trained encoder blurs them in so few steps
        text_tokens=48,
        dim=64,
        expert_dim=32,
        expert_depth=1,
        router_hidden_dim=64,
        local_scales=(0, 1),
        attention="cosine",
        mask_padding=True,
        temperatures=(10.0, 1.0, 20.0),
        word_softmax=False,
    )
    train = TrainConfig(
        epochs=30,
        patience=30,
        warmup_epochs=1,
        batch_size=32,
        accumulate=1,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.05,
        clip_norm=1.0,
        augment=False,
        precision="32-true",
        workers=0,
        cache_images=True,
    )
    return replace(Config(preset="tiny"), model=model, train=train)
