"""From a CSV and image files to batches."""

from ovr_ray.images.decoding import SUFFIXES, BadImage, decode, read_image
from ovr_ray.images.feed import Batch, Feed, ImageSet, bad_images_fault, load_parts, pixel_statistics
from ovr_ray.images.labels import PARTS, LabelTable, Part, empty_part_faults, read_labels
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
    "decode",
    "empty_part_faults",
    "load_parts",
    "pixel_statistics",
    "read_image",
    "read_labels",
    "read_table",
]
