"""The settings of a run, and the presets ``paper`` and ``tiny``; ``presets`` has all of them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from recipes.data.studies import Task
from recipes.medvlmoe.baselines import BASELINES, TINY_BASELINES
from recipes.medvlmoe.baselines.config import ContrastConfig
from recipes.shared.encoders.tuning import Tuning
from recipes.shared.settings import RunSettings, TrainSettings
from recipes.shared.strategy import Strategy

Variant = Literal["full", "no-moe", "single-ffn", "no-fusion", "no-text", "vision-only"]
Balance = Literal["fitted", "switch", "cv2", "bias", "printed", "dynamic"]
Classifier = Literal["medvlmoe", "late-fusion", "zero-shot", "none"]
Preset = Literal["paper", "tiny", *BASELINES, *TINY_BASELINES]  # type: ignore[valid-type]  # names of a tuple


@dataclass(frozen=True)
class PhantomConfig:
    """The drawn data sets; used with --data phantom and --data phantom-hard only."""

    train_studies: int = 1600
    """Studies drawn for training."""
    val_studies: int = 400
    """Studies drawn for validation."""
    test_studies: int = 600
    """Studies drawn for testing."""
    num_contexts: int = 2
    """Circumstances in the notes of phantom-hard, from 1 to 4: a pattern means other diseases under each."""


@dataclass(frozen=True)
class ManifestConfig:
    """How to read a csv of your own images and texts (--data FILE.csv).

    Text section, uncertain, blank, bad images, split seed and fractions are settings of chestxray14, chexpert,
    mimic-cxr and openi too.
    """

    image_column: str = "image"
    """Column with the image's path, relative to --image-root."""
    image_root: Path | None = None
    """Folder at which the paths of the images begin; the csv's own by default."""
    text_column: str | None = None
    """Column with the report or note; none by default."""
    text_section: str | None = None
    """Keep only this section of each report, such as indication; a report without it counts as no text. Several,
    joined by commas, are fallbacks: the first that a report has is kept. last_paragraph is the text's last one."""
    label_columns: tuple[str, ...] = ()
    """One column of 1, 0, -1 or blank per class."""
    label_column: str | None = None
    """Or one column with the class's name."""
    label_separator: str | None = "|"
    """What joins several names in --label-column; None if a cell is one name."""
    negative_label: str | None = None
    """The name in --label-column that stands for no class at all, such as "No Finding"."""
    classes: tuple[str, ...] = ()
    """Names of the classes in their order (lowest first for grades): those to look for in --label-column, or to show
    instead of --label-columns."""
    task: Task | None = None
    """Kind of the target; by default taken from the labels."""
    split_column: str | None = "split"
    """Column of train, val and test; None draws a split by group."""
    split_seed: int = 0
    """Seed of a drawn split."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test in a drawn split."""
    group_column: str | None = None
    """Column that identifies the patient."""
    subgroup_columns: tuple[str, ...] = ()
    """Columns by which test scores are split, such as sex, age (cut into bands of years) and view."""
    uncertain: Literal["ignore", "zeros", "ones", "per-label"] = "ignore"
    """What a label of -1 means: unknown, absent, present, or for each of CheXpert's five tasks what works best."""
    blank: Literal["ignore", "zeros"] | None = None
    """What a blank label means; by default unknown in a csv, absent in chexpert and mimic-cxr."""
    on_bad_image: Literal["error", "skip"] = "error"
    """Whether an unreadable image stops the run, or is skipped and counted."""


@dataclass(frozen=True)
class ChestConfig:
    """How to read chestxray14, chexpert, mimic-cxr and openi; used with --data NAME:FOLDER only."""

    views: tuple[str, ...] = ()
    """Keep images of these views only: frontal, lateral, or names that the set writes, such as AP PA."""
    official_splits: bool = True
    """The set's own splits; without them, and in openi, splits are drawn by patient (fractions, split seed)."""


@dataclass(frozen=True)
class DataConfig:
    """Where studies come from."""

    data: str = "phantom"
    """phantom or phantom-hard (drawn on the fly), a .csv, a MedMNIST-style .npz, a MedMNIST name such as breastmnist,
    or chestxray14:FOLDER, chexpert:FOLDER, mimic-cxr:FOLDER or openi:FOLDER."""
    data_root: Path | None = None
    """Folder of the MedMNIST files; the medmnist package's own by default."""
    data_size: int = 28
    """Edition of a MedMNIST set that is named, in pixels: 28, 64, 128 or 224."""
    download: bool = False
    """Let the medmnist package download a set that is named."""
    force_dicom: bool = False
    """Read DICOM files without preamble and file meta group, as old programs wrote them."""
    verify_images: bool = False
    """Read every image once before training, and list those that cannot be read."""
    use_text: bool = True
    """Whether texts are used where there are any."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    manifest: ManifestConfig = field(default_factory=ManifestConfig)
    chest: ChestConfig = field(default_factory=ChestConfig)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture."""

    image_encoder: str = "vit_large_patch14_clip_224"
    """Any timm name, a local folder (timm's save_for_hf), or hf-hub:owner/name."""
    image_weights: str = "hub"
    """hub (pretrained), random, or a file with a state dict."""
    image_size: int = 224
    """Side of the square input, in pixels."""
    slices: int | None = None
    """Slices of a volume that are read, evenly spaced; none reads images. A volume is a folder, a .npy or a DICOM file
    of several frames in a csv, or of a 3-D MedMNIST set; each slice goes through the image encoder."""
    slice_tokens: Literal["summary", "patches"] = "summary"
    """What each slice gives to the fusion: one token, or one per patch."""
    image_stride: int | None = None
    """Requested pixels per patch; ignored by encoders that allow no choice."""
    image_positions: Literal["random", "sine"] = "random"
    """How the learned positions of patches begin: at random and small (standard deviation 0.02), or at a sine code of
    row and column that is as large as the features, so that words find places sooner."""
    text_encoder: str = "microsoft/biogpt"
    """A transformers hub id, a local folder, or tiny."""
    text_weights: Literal["hub", "random"] = "hub"
    """Pretrained weights, or the architecture alone; the encoder tiny is always random."""
    text_tokens: int = 256
    """Longest text, in tokens; the rest is cut off."""
    text_pooling: Literal["mean", "last", "first", "max"] = "mean"
    """How text tokens become one vector; the paper prints first, which a causal encoder lacks."""
    image_tuning: Tuning = "full"
    """What of the image encoder is trained: everything, nothing, or low-rank adapters of its linear layers (LoRA)."""
    text_tuning: Tuning = "full"
    """What of the text encoder is trained."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """The adapters' output is multiplied by this over their rank."""
    variant: Variant = "full"
    """The full model, or an ablation of Table 2: for the experts one dense network of equal active FLOPs (no-moe) or of
    one expert's size, as in the paper (single-ffn); no cross-attention; the null text for all texts (no-text); the
    image encoder and a linear classifier alone, so no experts either (vision-only)."""
    classifier: Classifier = "medvlmoe"
    """MedVLMoE (or its --variant); vectors of image and text side by side (late-fusion); the similarity of an image
    with prompts of the classes (zero-shot); or none: a contrast alone, whose encoders other runs start from."""
    dim: int = 512
    """Width of the common space, d."""
    num_heads: int = 8
    """Heads of the cross-attention."""
    cross_attention: Literal["tokens", "summary"] = "tokens"
    """All patches and text tokens, or one summary token each as printed."""
    tie_projections: bool = False
    """One W_Q, W_K, W_V for both directions, as printed."""
    residual: bool = True
    """Pre-norm residual connections around fusion and experts; the paper prints none."""
    residual_init: Literal["random", "zero"] = "random"
    """How the branches beside these connections begin: with random weights, or with zeros in the last layer, so that
    fusion and experts change nothing at first and the encoders learn sooner."""
    gate: bool = True
    """The sigmoid gate G(F)."""
    num_experts: int = 8
    """Number of experts, E."""
    router: Literal["top-k", "dynamic"] = "top-k"
    """The K best experts of each decision, or as few of these as reach --mass of the router's probability."""
    top_k: int = 2
    """Experts per decision, K; with a dynamic router at most."""
    mass: float = 0.4
    """Probability that the experts of a dynamic router's decision reach together."""
    expert_hidden_dim: int = 4096
    """Hidden width of each expert; the paper gives none, its preset takes four times 2d."""
    route_on: Literal["study", "token"] = "study"
    """One routing decision per study, or one per patch and text token."""
    dropout: float = 0.1
    """In fusion and before the classifier."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """How it is trained."""

    warmup_epochs: float = 10
    """Linear warm-up; then a cosine to zero."""
    lr_encoder: float = 3e-5
    """AdamW's learning rate for the encoders."""
    lr_head: float = 1e-4
    """AdamW's learning rate for everything else."""
    contrast_epochs: int = 50
    """Passes over the training pairs in a contrastive stage before the classifier's epochs (--objective)."""
    contrast_lr: float = 1e-4
    """AdamW's learning rate of that stage, for all weights."""
    balance: Balance = "fitted"
    """A selection bias fitted to recent decisions, so that all experts get the same load; Switch loss; CV² of
    importance and load (with noisy routing); loss-free by steps of the selection bias; the printed Σ(f-p), which is
    identically zero; or, with --router dynamic, that of shares of studies (dynamic)."""
    balance_weight: float = 0.01
    """Coefficient α of the balancing loss; with bias the step of the selection bias; fitted has none."""
    entropy_weight: float = 0.0
    """Coefficient of the mean entropy of the router's probabilities, which lets a dynamic router use fewer experts;
    1e-4 in its paper."""
    z_weight: float = 1e-3
    """Coefficient of the router z-loss."""
    drop_image: float = 0.0
    """Share of the studies with image and text that an epoch shows without the image, drawn anew for each epoch, so
    that the model learns to do without."""
    drop_text: float = 0.0
    """Share that it shows without the text; no study loses both."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the task's loss in training: none, or the inverse of how often each label occurs."""
    strategy: Strategy = "ddp"
    """How several devices train: copies of the model (ddp), or shards of its weights, gradients and moments (fsdp2)."""


@dataclass(frozen=True)
class Config(RunSettings):
    """A run."""

    preset: Preset = "paper"
    """Where the defaults come from."""
    out: Path = Path("runs/medvlmoe")
    """Folder of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def paper() -> Config:
    """Returns what the paper prints: ViT-L/14 and BioGPT, d=512, 8 experts, top 2, 100 epochs, three seeds."""
    return Config(preset="paper", seeds=(0, 1, 2))


def tiny() -> Config:
    """Returns settings with small encoders from scratch, for a laptop CPU; the demo."""
    model = ModelConfig(
        image_encoder="test_resnet",
        image_weights="random",
        image_size=96,
        image_stride=16,
        text_encoder="tiny",
        text_weights="random",
        text_tokens=96,
        dim=128,
        num_heads=4,
        expert_hidden_dim=256,
    )
    train = TrainConfig(
        epochs=8,
        warmup_epochs=1,
        lr_encoder=2e-3,
        lr_head=2e-3,
        weight_decay=0.05,
        precision="32-true",
        workers=0,
        cache_images=True,
    )
    return replace(Config(preset="tiny"), model=model, train=train)
