"""A sub-model: network, preprocessing, metrics, checkpoints. Imports no Ray."""

from ovr_ray.model.activation import class_activation
from ovr_ray.model.backbones import LITE, Backbone, build, size_fault
from ovr_ray.model.backbones import names as backbone_names
from ovr_ray.model.checkpoint import (
    CARD,
    TRAINING,
    WEIGHTS,
    Card,
    forget,
    load_sub_model,
    load_training,
    read_card,
    save,
)
from ovr_ray.model.metrics import Confusion, average_precision, choose_threshold, f1_at, interval
from ovr_ray.model.sub_model import SubModel, activate_out_of_place, prepared
from ovr_ray.model.weights import initial_weights, weights_fault

__all__ = [
    "CARD",
    "LITE",
    "TRAINING",
    "WEIGHTS",
    "Backbone",
    "Card",
    "Confusion",
    "SubModel",
    "activate_out_of_place",
    "average_precision",
    "backbone_names",
    "build",
    "choose_threshold",
    "class_activation",
    "f1_at",
    "forget",
    "initial_weights",
    "interval",
    "load_sub_model",
    "load_training",
    "prepared",
    "read_card",
    "save",
    "size_fault",
    "weights_fault",
]
