"""What one trial is trained with, and the space that a search may draw it from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo


class Model(BaseModel):
    """Base of every recipe section: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _starts_at_epoch_one(stages: dict[int, float]) -> dict[int, float]:
    if 1 not in stages:
        raise ValueError("a staged schedule needs a rate from epoch 1 on, e.g. {1: 1.0e-3, 6: 1.0e-4}")
    return stages


Stages = Annotated[dict[PositiveInt, PositiveFloat], AfterValidator(_starts_at_epoch_one)]
"""First epoch of a stage -> learning rate."""


def is_anchored(path: str) -> bool:
    """Whether a path or URI means the same from every folder."""
    return "://" in path or Path(path).expanduser().is_absolute()


def absolute(path: str) -> str:
    """The path from the root; URIs as they are."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def _file_or_name(weights: str) -> str:
    return absolute(weights) if "/" in weights or Path(weights).suffix else weights


Weights = Annotated[str, AfterValidator(_file_or_name)]
"""A name of torchvision's, or the path of a file or a checkpoint."""


Fraction = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class Augment(Model):
    """Random changes of training images, drawn anew for every image and epoch."""

    horizontal_flip: Fraction = 0.5
    """How often an image is mirrored."""
    vertical_flip: Fraction = 0.5
    rotation: Degrees = 0
    """Degrees, at most, either way."""
    shift: ShareBelowOne = 0
    """Share of a side, at most, in each direction."""
    crop: ShareBelowOne = 0
    """Share of the area that is cut away, at most; the rest is enlarged again."""
    brightness: Fraction = 0
    """Relative change, at most, either way."""


RETIRED = ("label_smoothing", "focal_gamma", "dropout")
"""Fields that configs of older runs have."""


class Config(Model):
    """One sub-model's hyperparameters. A task's ``space`` may vary any of them."""

    backbone: str = "resnet18"
    """A torchvision classification network by its torchvision name, or ``efficientnet_lite0``."""
    weights: Weights | None = "DEFAULT"
    """Where the backbone starts: a name of torchvision's (``DEFAULT``, ``IMAGENET1K_V1``), a state-dict file, the
    checkpoint of another sub-model (its folder or ``weights.pt``), whose body is taken, or null for random weights."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Pixels a side that the network sees; null: ``data.image_size``."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 3e-4
    """Learning rate at the start (a staged ``schedule`` brings its own)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    schedule: Literal["constant", "cosine"] | Stages = "cosine"
    """``constant``, ``cosine`` (to zero at ``search.max_epochs``), or staged: first epoch of a stage -> rate."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """The rate grows from zero over so many epochs, or parts of one; a cosine then falls step by step, too, not epoch
    by epoch."""
    body_lr_factor: PositiveFloat = 1.0
    """The backbone's body learns at so many times the rate of its head."""
    unfreeze_epoch: NonNegativeInt = 0
    """The head alone is trained before this epoch; 0 or 1: the whole network from the start."""
    pos_weight: Literal["balanced"] | PositiveFloat = "balanced"
    """Weight of a positive image in the loss; balanced: negatives / positives of the train part."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0, validation, checkpoints and thresholds are of an exponential moving average of the weights."""
    precision: Literal["auto", "bf16", "tf32", "fp32"] = "auto"
    """What a network multiplies in; its weights are float32 in any case. ``bf16``: autocast; ``tf32``: float32 with a
    short fraction, on NVIDIA's tensor cores; ``auto``: bf16 on GPUs that have it in hardware, else fp32."""
    horizontal_flip: Fraction | None = None
    """As in :class:`Augment`; null, here and below: as the recipe's ``augment`` says."""
    vertical_flip: Fraction | None = None
    rotation: Degrees | None = None
    shift: ShareBelowOne | None = None
    crop: ShareBelowOne | None = None
    brightness: Fraction | None = None

    @model_validator(mode="before")
    @classmethod
    def _older_runs_had_more_fields(cls, raw: Any) -> Any:
        """They are gone; where they were off, as they were by default, an older run goes on without them."""
        if not isinstance(raw, dict):
            return raw
        return {name: value for name, value in raw.items() if name not in RETIRED or value}

    def augment(self, otherwise: Augment) -> Augment:
        """How this config's training images are changed."""
        given = {name: value for name in Augment.model_fields if (value := getattr(self, name)) is not None}
        return otherwise.model_copy(update=given)


T = TypeVar("T")


class Choice(Model, Generic[T]):
    """One of the listed values."""

    choice: Annotated[list[T], Field(min_length=1)]

    def __str__(self) -> str:
        return f"one of {self.choice}"

    def __contains__(self, value: Any) -> bool:
        return value in self.choice


class Range(Model):
    """Base of the domains with two ends, their only field."""

    def __str__(self) -> str:
        return f"{self.bounds[0]} to {self.bounds[1]}"

    @property
    def bounds(self) -> tuple[Any, Any]:
        low, high = next(iter(self.__dict__.values()))
        return low, high

    @model_validator(mode="after")
    def _low_before_high(self) -> Range:
        if not all(isinstance(end, int | float) for end in self.bounds):
            raise ValueError(f"a range needs two numbers, not {list(self.bounds)}; list the values as a choice")
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"the low end {self.bounds[0]} is not below the high end {self.bounds[1]}")
        return self

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.bounds[0] <= value <= self.bounds[1]


class Uniform(Range, Generic[T]):
    """A number between two ends."""

    uniform: tuple[T, T]


class LogUniform(Range, Generic[T]):
    """A number between two positive ends, its logarithm uniform."""

    loguniform: tuple[T, T]

    @model_validator(mode="after")
    def _positive(self) -> LogUniform[T]:
        if self.bounds[0] <= 0:
            raise ValueError(f"loguniform needs positive ends, not {self.bounds[0]}")
        return self


class RandInt(Range, Generic[T]):
    """A whole number between two ends, both included."""

    randint: tuple[T, T]

    @model_validator(mode="after")
    def _whole(self) -> RandInt[T]:
        if any(end != int(end) for end in self.bounds):
            raise ValueError(f"randint needs whole numbers, not {list(self.bounds)}")
        return self

    def __contains__(self, value: Any) -> bool:
        return super().__contains__(value) and value == int(value)


Domain = Choice | Range
_DOMAINS = ("choice", "uniform", "loguniform", "randint")


def _domain_tag(value: Any) -> str:
    if isinstance(value, Choice | Range):
        return next(iter(type(value).model_fields))
    is_domain = isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _DOMAINS
    return str(next(iter(value))) if is_domain else "value"


def _varied(kind: Any) -> Any:
    """A plain value of this type, or a domain of such values."""
    return Annotated[
        Annotated[Choice[kind], Tag("choice")]
        | Annotated[Uniform[kind], Tag("uniform")]
        | Annotated[LogUniform[kind], Tag("loguniform")]
        | Annotated[RandInt[kind], Tag("randint")]
        | Annotated[kind, Tag("value")],
        Discriminator(_domain_tag),
    ]


def _type_of(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


_space_fields: dict[str, Any] = {name: (_varied(_type_of(f)), None) for name, f in Config.model_fields.items()}
if TYPE_CHECKING:

    class Space(Model):
        """Fields of Config, each a value or a domain."""
else:
    Space = create_model(
        "Space", __base__=Model, __doc__="Fields of Config, each a value or a domain.", **_space_fields
    )
