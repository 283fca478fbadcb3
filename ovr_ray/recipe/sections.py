"""The sections of a recipe, each check beside its field."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ovr_ray.choices import LEAST_IMAGE_SIZE, Color, Metric, OnBadImage, OnDuplicates, Scheduler, Searcher
from ovr_ray.recipe import plugins
from ovr_ray.recipe.config import Augment, Choice, Config, Domain, Fraction, Section, Space, absolute, is_anchored
from ovr_ray.recipe.names import Name, collides


def _fault_at(where: tuple[str | int, ...], problem: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("recipe", "{problem}", {"problem": problem}), loc=where, input=value
    )


class RandomSplit(Section):
    """A random split, stratified on the labels; the rows in neither val nor test are train."""

    val: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(ge=0, lt=1)] = 0.2
    seed: NonNegativeInt = 32
    stratify: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Columns of 0/1 whose share of positives is the same in every split; null: the columns of the tasks."""

    @model_validator(mode="after")
    def _leaves_training_images(self) -> RandomSplit:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} leave no images to train on")
        return self


class ColumnSplit(Section):
    """The user's own split: a column that holds train, val or test."""

    column: str


def _split_tag(value: Any) -> str:
    return "column" if isinstance(value, ColumnSplit) or (isinstance(value, dict) and "column" in value) else "random"


class Data(Section):
    """Labels and images, and how they are split and stored."""

    labels: str
    """CSV or Parquet file (path or URI), one row per image."""
    images: str
    """Folder (path or URI) that ``filename`` is relative to."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ";"
    filename: str = "filename"
    """Column of the image's path below ``images``."""
    group: str | None = None
    """Column; rows with the same value always fall into the same split."""
    split: Annotated[
        Annotated[RandomSplit, Tag("random")] | Annotated[ColumnSplit, Tag("column")],
        Discriminator(_split_tag),
    ] = RandomSplit()
    image_size: Annotated[int, Field(ge=LEAST_IMAGE_SIZE, le=4096)] = 224
    """Pixels a side of the stored images, which are resized to a square."""
    color: Color = "gray"
    white: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Value of white in gray images of more than 8 bits; null: the largest that the bits of each file allow."""
    limit: PositiveInt | None = None
    """Use only about this many rows, with the labels' shares kept; for trying things out."""
    on_bad_image: OnBadImage = "error"
    duplicates: OnDuplicates = "warn"
    """What happens to files of the same content; together: they always fall into the same split."""

    @property
    def channels(self) -> int:
        """Channels of a stored image: 1 or 3."""
        return 1 if self.color == "gray" else 3


class RecallGoal(Section):
    """The highest threshold whose recall is still at least this."""

    recall: Annotated[float, Field(gt=0, le=1)]


class PrecisionGoal(Section):
    """The lowest threshold whose precision is at least this."""

    precision: Annotated[float, Field(gt=0, le=1)]


def _goal_tag(value: Any) -> str:
    for name, kind in (("recall", RecallGoal), ("precision", PrecisionGoal)):
        if isinstance(value, kind) or (isinstance(value, dict) and name in value):
            return name
    return "f1" if isinstance(value, str) else "number"


ThresholdGoal = Annotated[
    Annotated[Literal["f1"], Tag("f1")]
    | Annotated[RecallGoal, Tag("recall")]
    | Annotated[PrecisionGoal, Tag("precision")]
    | Annotated[Fraction, Tag("number")],
    Discriminator(_goal_tag),
]


class Task(Section):
    """One label: its column, its number of trials, its search space."""

    column: str = ""
    """Column of 0/1, where an empty cell means unknown. Default: the task's name."""
    trials: PositiveInt = 20
    default: Config = Config()
    """Config of the first trial."""
    space: Space = Space()
    threshold: ThresholdGoal = "f1"
    """How the decision threshold is chosen: f1 (maximise it), {recall: 0.95}, {precision: 0.9}, or a fixed number."""

    def varied(self) -> dict[str, Domain]:
        """Return the fields that the search varies."""
        return {name: value for name, value in self._given_space().items() if isinstance(value, Domain)}

    def fixed(self) -> dict[str, Any]:
        """Return the fields with one value, from ``space`` or else from ``default``."""
        given = self.default.model_dump(exclude_unset=True) | self._given_space()
        return {name: value for name, value in given.items() if name not in self.varied()}

    def options(self, field: str) -> list[Any]:
        """Return the possible values of a config field: all of a choice, the ends of a range, or its only value."""
        domain = self.varied().get(field)
        if domain is None:
            return [self.fixed().get(field, getattr(self.default, field))]
        return domain.choice if isinstance(domain, Choice) else list(domain.bounds)

    def _given_space(self) -> dict[str, Any]:
        return {name: value for name, value in self.space if name in self.space.model_fields_set}

    @model_validator(mode="after")
    def _default_lies_in_space(self) -> Task:
        outside = []
        for name, value in self.default.model_dump(exclude_unset=True).items():
            domain = self.varied().get(name)
            if domain and value not in domain:
                outside.append(_fault_at(("default", name), f"{value!r} is outside of space.{name} ({domain})", value))
        if outside:
            raise ValidationError.from_exception_data("Task", outside)
        return self


BUILT_IN_TRACKERS: Final = ("mlflow", "wandb")


def _known_tracker(name: str) -> str:
    known = [*BUILT_IN_TRACKERS, *plugins.names(plugins.TRACKERS)]
    if name not in known:
        raise ValueError(f"no such tracker; installed: {', '.join(known)}")
    return name


class Search(Section):
    """How the tasks are searched."""

    metric: Metric = "average_precision"
    """Validation metric by which trials and epochs are compared."""
    searcher: Searcher = "tpe"
    scheduler: Scheduler = "asha"
    max_epochs: PositiveInt = 30
    grace_epochs: PositiveInt = 3
    """Number of epochs before which early stopping stops no trial."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """At each rung of early stopping, 1 in this many trials continues."""
    seed: NonNegativeInt = 0
    max_concurrent: PositiveInt | None = None
    """Trials that run at once; null: as many as fit the running nodes. A number also makes an autoscaler add nodes."""
    time_budget: PositiveFloat | None = None
    """Seconds that the search may take, summed over all sessions; null: no limit."""
    max_failures: NonNegativeInt = 3
    """How many times a crashed trial is started again, from its last checkpoint."""
    trackers: tuple[Annotated[str, AfterValidator(_known_tracker)], ...] = ()
    """Services that also get every trial's config and epochs; see :mod:`ovr_ray.search.trackers`."""

    @property
    def score_column(self) -> str:
        """Column of ``epochs.csv``, and key of a checkpoint's metrics, by which trials and epochs are compared."""
        return f"val_{self.metric}"

    @model_validator(mode="after")
    def _grace_within_epochs(self) -> Search:
        if self.grace_epochs > self.max_epochs:
            raise ValueError(f"grace_epochs {self.grace_epochs} is more than max_epochs {self.max_epochs}")
        return self


class Checkpoints(Section):
    """Which epochs of a trial are saved, and how many checkpoints are kept."""

    every: PositiveInt = 1
    """Save every n-th epoch, and always the last one."""
    above_f1: Fraction | None = None
    """Also save each epoch whose validation F1 is at least this."""
    keep: PositiveInt = 2
    """Checkpoints that are kept per trial: the best ones. The latest is always kept, even beside a single best."""


class Resources(Section):
    """Resources of one running trial; fractions are allowed."""

    cpu: PositiveFloat = 1
    gpu: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """GPUs; auto: 1 where the cluster has GPUs, else 0."""
    object_store: Fraction = 0.5
    """Share of a node's object store that decoded images may fill; a larger set is streamed from disk."""


class Recipe(Section):
    """Everything that a search needs to know."""

    name: Name
    """Name of the run folder below ``storage``."""
    data: Data
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    augment: Augment = Augment()
    search: Search = Search()
    checkpoints: Checkpoints = Checkpoints()
    resources: Resources = Resources()
    storage: str = "runs"
    """Folder or URI that every node can read and write; the run folder is ``<storage>/<name>``."""

    @model_validator(mode="before")
    @classmethod
    def _column_is_named_like_its_task(cls, raw: Any) -> Any:
        tasks = raw.get("tasks") if isinstance(raw, dict) else None
        if not isinstance(tasks, dict):
            return raw
        named = {
            name: {"column": name} | (task or {}) if task is None or isinstance(task, dict) else task
            for name, task in tasks.items()
        }
        return raw | {"tasks": named}

    @model_validator(mode="after")
    def _tasks_have_columns_of_their_own(self) -> Recipe:
        problem = "is the name of another column of the predictions; give the task another name"
        others = {name: [other for other in self.tasks if other != name] for name in self.tasks}
        faults = [_fault_at(("tasks", name), problem, name) for name in self.tasks if collides(name, others[name])]
        if faults:
            raise ValidationError.from_exception_data("Recipe", faults)
        return self

    @model_validator(mode="after")
    def _no_task_sees_more_than_is_stored(self) -> Recipe:
        stored, faults = self.data.image_size, []
        for name, task in self.tasks.items():
            too_large = [size for size in task.options("image_size") if size is not None and size > stored]
            if too_large:
                problem = f"asks for {too_large[0]} pixels a side, more than data.image_size ({stored}) stores"
                faults.append(_fault_at(("tasks", name, "space", "image_size"), problem, too_large))
        if faults:
            raise ValidationError.from_exception_data("Recipe", faults)
        return self

    def relative_fields(self) -> list[str]:
        """Return the fields whose path depends on the current folder."""
        paths = {"data.labels": self.data.labels, "data.images": self.data.images, "storage": self.storage}
        return [name for name, path in paths.items() if not is_anchored(path)]

    def resolved(self) -> Recipe:
        """Return this recipe with absolute paths, so that it means the same from every folder."""
        data = self.data.model_copy(update={k: absolute(getattr(self.data, k)) for k in ("labels", "images")})
        return self.model_copy(update={"data": data, "storage": absolute(self.storage)})

    def dump(self) -> dict[str, Any]:
        """Return plain YAML types; fields that were not given appear with their defaults, spaces as given."""
        plain = self.model_dump(mode="json")
        for name, task in self.tasks.items():
            plain["tasks"][name]["space"] = task.space.model_dump(mode="json", exclude_unset=True)
            plain["tasks"][name]["default"] = task.default.model_dump(mode="json", exclude_unset=True)
        return plain
