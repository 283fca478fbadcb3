"""One sub-model: network, training, metrics, checkpoints. Imports no Ray."""

from ovr_ray.model.activation import class_activation
from ovr_ray.model.backbones import LITE, build, names, size_fault, weights_fault
from ovr_ray.model.checkpoint import Card, forget, load_sub_model, load_training, read_card, save
from ovr_ray.model.metrics import Confusion, average_precision, choose_threshold, f1_at, interval
from ovr_ray.model.schedule import learning_rate
from ovr_ray.model.sub_model import SubModel, prepared
from ovr_ray.model.training import Diverged, Trainer, choose_device, is_out_of_memory, keep_pages

__all__ = [
    "LITE",
    "Card",
    "Confusion",
    "Diverged",
    "SubModel",
    "Trainer",
    "average_precision",
    "build",
    "choose_device",
    "choose_threshold",
    "class_activation",
    "f1_at",
    "forget",
    "interval",
    "is_out_of_memory",
    "keep_pages",
    "learning_rate",
    "load_sub_model",
    "load_training",
    "names",
    "prepared",
    "read_card",
    "save",
    "size_fault",
    "weights_fault",
]
