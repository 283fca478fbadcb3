"""What one trial is trained with, and the space that a search may draw it from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from ovr_ray.choices import LEAST_IMAGE_SIZE, NamedSchedule, Optimizer, Precision


def without_booleans(value: Any) -> Any:
    """Return a value; raises ValueError if it is, or holds, a boolean, which pydantic would take for 1 or 0."""
    inside = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) for one in inside):
        raise ValueError("yes, no, on, off, true and false mean nothing here; write a number, or text in quotes")
    return value


class Section(BaseModel):
    """Base of every recipe section. Unknown fields are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_and_no(cls, value: Any) -> Any:
        return without_booleans(value)


def _starts_at_epoch_one(stages: dict[int, float]) -> dict[int, float]:
    if 1 not in stages:
        raise ValueError("a staged schedule needs a rate from epoch 1 on, e.g. {1: 1.0e-3, 6: 1.0e-4}")
    return stages


Rate = Annotated[PositiveFloat, BeforeValidator(without_booleans)]
Stages = Annotated[dict[PositiveInt, Rate], AfterValidator(_starts_at_epoch_one)]
"""First epoch of a stage -> learning rate."""


def is_anchored(path: str) -> bool:
    """Return whether a path or URI means the same from every folder."""
    return is_uri(path) or Path(_expanded(path)).is_absolute()


def absolute(path: str) -> str:
    """Return the path from the root; URIs, and what is no path, stay as they are."""
    try:
        return path if is_uri(path) else str(Path(_expanded(path)).resolve())
    except ValueError:  # a null character
        return path


def is_uri(path: str) -> bool:
    """Return whether a text begins with a protocol, such as ``s3://``, or with several, ``simplecache::s3://``."""
    return re.match(r"[A-Za-z][\w+.:-]*://", path) is not None


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # there is no such user
        return path


def is_weights_file(weights: str) -> bool:
    """Return whether ``weights`` is a path, not the name of pretrained weights."""
    return "/" in weights or bool(Path(weights).suffix)


def _anchored(weights: str) -> str:
    return absolute(weights) if is_weights_file(weights) else weights


Weights = Annotated[str, AfterValidator(_anchored)]
"""A name of the backbone's pretrained weights, or the path of a state-dict file or a checkpoint."""


Fraction = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class Augment(Section):
    """Random changes of training images, drawn anew for every image and every epoch."""

    horizontal_flip: Fraction = 0.5
    """Probability that an image is mirrored, left to right."""
    vertical_flip: Fraction = 0.5
    """Probability that an image is turned upside down."""
    rotation: Degrees = 0
    """Largest rotation, in degrees, clockwise or counterclockwise."""
    shift: ShareBelowOne = 0
    """Largest shift along each axis, as a share of the side."""
    crop: ShareBelowOne = 0
    """Largest share of the area that is cut away; the rest is resized to the full image."""
    brightness: Fraction = 0
    """Largest relative change of brightness, up or down."""


RETIRED: Final = ("label_smoothing", "focal_gamma", "dropout")
"""Fields that were removed; configs of older runs still have them."""


class Config(Section):
    """One sub-model's hyperparameters. A task's ``space`` may vary any of them."""

    backbone: str = "resnet18"
    """Name of a network; :func:`ovr_ray.model.backbone_names` lists all of them."""
    weights: Weights | None = "DEFAULT"
    """Initial weights of the backbone: a name (``DEFAULT``, ``IMAGENET1K_V1``), a state-dict file, the checkpoint of
    another sub-model (its folder or ``weights.pt``), or null for random weights. The head is always new."""
    image_size: Annotated[int, Field(ge=LEAST_IMAGE_SIZE)] | None = None
    """Pixels a side that the network sees; null: ``data.image_size``."""
    optimizer: Optimizer = "adamw"
    lr: PositiveFloat = 3e-4
    """Initial learning rate; a staged ``schedule`` sets its own."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD (Nesterov's); 0: plain SGD. Other optimizers ignore it."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    schedule: NamedSchedule | Stages = "cosine"
    """``constant``, ``cosine`` (to zero at ``search.max_epochs``), or stages: first epoch of a stage -> rate."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """The rate grows linearly from zero over this many epochs, which may be a fraction. A cosine then falls at every
    step instead of every epoch."""
    body_lr_factor: PositiveFloat = 1.0
    """Learning rate of the backbone's body, as a multiple of the head's."""
    unfreeze_epoch: NonNegativeInt = 0
    """Only the head is trained before this epoch; 0 or 1: the whole network from the start."""
    pos_weight: Literal["balanced"] | PositiveFloat = "balanced"
    """Weight of a positive image in the loss; balanced: negatives / positives of the train split."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0, an exponential moving average of the weights is validated and saved instead of the weights."""
    precision: Precision = "auto"
    """Arithmetic of the network; its weights are float32 in any case. ``bf16``: autocast; ``tf32``: float32 with a
    short mantissa on NVIDIA's tensor cores; ``auto``: bf16 on GPUs and processors (AVX-512) that have it in hardware,
    else fp32. A resumed trial goes on with what ``auto`` meant where it began."""
    horizontal_flip: Fraction | None = None
    """As in :class:`Augment`; null, here and below: the recipe's ``augment`` decides."""
    vertical_flip: Fraction | None = None
    rotation: Degrees | None = None
    shift: ShareBelowOne | None = None
    crop: ShareBelowOne | None = None
    brightness: Fraction | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_retired_fields(cls, raw: Any) -> Any:
        """Accept configs of older runs in which the retired fields were off, as they were by default."""
        if not isinstance(raw, dict):
            return raw
        return {name: value for name, value in raw.items() if name not in RETIRED or value}

    def augment(self, otherwise: Augment) -> Augment:
        """Return the augmentation of this config; fields that it leaves open are taken from ``otherwise``."""
        given = {name: value for name in Augment.model_fields if (value := getattr(self, name)) is not None}
        return otherwise.model_copy(update=given)


T = TypeVar("T")


class Choice(Section, Generic[T]):
    """One of the listed values."""

    choice: Annotated[list[T], Field(min_length=1)]

    def __str__(self) -> str:
        return f"one of {self.choice}"

    def __contains__(self, value: Any) -> bool:
        return value in self.choice


class Range(Section):
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
DOMAINS = ("choice", "uniform", "loguniform", "randint")


def _domain_tag(value: Any) -> str:
    if isinstance(value, Choice | Range):
        return next(iter(type(value).model_fields))
    is_domain = isinstance(value, dict) and len(value) == 1 and next(iter(value)) in DOMAINS
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

    class Space(Section):
        """Fields of Config, each a value or a domain."""
else:
    Space = create_model(
        "Space", __base__=Section, __doc__="Fields of Config, each a value or a domain.", **_space_fields
    )
