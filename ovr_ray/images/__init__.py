"""From a CSV and image files to batches."""

from ovr_ray.images.decoding import SUFFIXES, BadImage, decode, read_image
from ovr_ray.images.feed import Batch, Feed
from ovr_ray.images.image_set import ImageSet, bad_images_fault, load, prepare
from ovr_ray.images.labels import PARTS, LabelTable, Part, empty_part_faults, groups, read_labels
from ovr_ray.images.preview import contact_sheet
from ovr_ray.images.progress import progress
from ovr_ray.images.tables import read_table

__all__ = [
    "PARTS",
    "SUFFIXES",
    "BadImage",
    "Batch",
    "Feed",
    "ImageSet",
    "LabelTable",
    "Part",
    "bad_images_fault",
    "contact_sheet",
    "decode",
    "empty_part_faults",
    "groups",
    "load",
    "prepare",
    "progress",
    "read_image",
    "read_labels",
    "read_table",
]
