"""The path from a label file and image files to batches of training images."""

from ovr_ray.images.decoding import SUFFIXES, BadImage, decode, read_facts, read_image
from ovr_ray.images.feed import Batch, Feed
from ovr_ray.images.files import refuse_moved, stamps
from ovr_ray.images.image_set import ImageSet, load, prepare
from ovr_ray.images.labels import SPLITS, LabelTable, groups, read_labels
from ovr_ray.images.preview import contact_sheet
from ovr_ray.images.progress import progress
from ovr_ray.images.review import reviewed
from ovr_ray.images.tables import as_numbers, headerless, read_table, separators

__all__ = [
    "SPLITS",
    "SUFFIXES",
    "BadImage",
    "Batch",
    "Feed",
    "ImageSet",
    "LabelTable",
    "as_numbers",
    "contact_sheet",
    "decode",
    "groups",
    "headerless",
    "load",
    "prepare",
    "progress",
    "read_facts",
    "read_image",
    "read_labels",
    "read_table",
    "refuse_moved",
    "reviewed",
    "separators",
    "stamps",
]
