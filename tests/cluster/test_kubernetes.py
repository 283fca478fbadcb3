"""jobs/clusters/rayjob.yaml against the fields that the custom resource has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovr_ray.recipe import parse

CLUSTERS = Path(__file__).parents[2] / "jobs" / "clusters"
JOB, RECIPE = yaml.safe_load_all((CLUSTERS / "rayjob.yaml").read_text())

ANY: dict[str, Any] = {}
"""Fields that have no fixed names."""

RESOURCES = {"requests": ANY, "limits": ANY}
CONTAINER = {
    **dict.fromkeys(("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports"), None),
    "resources": RESOURCES,
    "volumeMounts": {"name": None, "mountPath": None, "readOnly": None, "subPath": None},
}
POD = {
    **dict.fromkeys(("serviceAccountName", "restartPolicy", "nodeSelector", "imagePullSecrets"), None),
    "containers": CONTAINER,
    "initContainers": CONTAINER,
    "volumes": {
        "name": None,
        "persistentVolumeClaim": {"claimName": None, "readOnly": None},
        "configMap": {"name": None, "items": None},
    },
    "tolerations": {"key": None, "operator": None, "effect": None, "value": None},
}
GROUP = {"rayStartParams": ANY, "resources": ANY, "labels": ANY, "template": {"metadata": ANY, "spec": POD}}
FIELDS = {
    "apiVersion": None,
    "kind": None,
    "metadata": {"name": None, "namespace": None, "labels": ANY, "annotations": ANY},
    "spec": {
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "metadata", "suspend"), None),
        **dict.fromkeys(("backoffLimit", "activeDeadlineSeconds", "entrypointNumCpus", "entrypointNumGpus"), None),
        **dict.fromkeys(("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "entrypointResources"), None),
        **dict.fromkeys(("clusterSelector", "submitterPodTemplate", "submitterConfig", "managedBy"), None),
        "rayClusterSpec": {
            **dict.fromkeys(("rayVersion", "enableInTreeAutoscaling", "suspend", "gcsFaultToleranceOptions"), None),
            "authOptions": {"mode": None, "secretName": None},
            "autoscalerOptions": {"idleTimeoutSeconds": None, "upscalingMode": None, "version": None, "image": None},
            "headGroupSpec": GROUP | {"serviceType": None, "enableIngress": None},
            "workerGroupSpecs": GROUP
            | dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"), None),
        },
    },
}
"""The fields of KubeRay's RayJob (ray.io/v1, 1.5) and of Kubernetes' pods that our manifest may use."""


def unknown(value: Any, fields: dict[str, Any] | None, path: str = "") -> list[str]:
    """Return the paths of fields that are not among the known ones."""
    if isinstance(value, list):
        return [fault for i, entry in enumerate(value) for fault in unknown(entry, fields, f"{path}[{i}]")]
    if not isinstance(value, dict) or not fields:
        return []
    return [
        fault
        for name, inner in value.items()
        for fault in (unknown(inner, fields[name], f"{path}.{name}") if name in fields else [f"{path}.{name}"])
    ]


def test_every_field_is_one_that_kuberay_knows() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert unknown(JOB, FIELDS) == []


@pytest.mark.parametrize("path", [["spec"], ["spec", "rayClusterSpec"], ["spec", "rayClusterSpec", "headGroupSpec"]])
def test_a_misspelt_field_is_found(path: list[str]) -> None:
    changed = yaml.safe_load(yaml.safe_dump(JOB))
    section = changed
    for name in path:
        section = section[name]
    section["entryPoint"] = 1
    assert unknown(changed, FIELDS) == [f".{'.'.join(path)}.entryPoint"]


def test_the_recipe_is_valid_and_asks_for_what_a_gpu_pod_has() -> None:
    recipe = parse(yaml.safe_load(RECIPE["data"]["recipe.yaml"]), "rayjob.yaml")
    assert recipe.relative_fields() == []
    (group,) = JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (float(limits["cpu"]), limits["nvidia.com/gpu"]) == (recipe.resources.cpu, recipe.resources.gpu)
    assert group["maxReplicas"] == recipe.search.max_concurrent
    assert JOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_image_and_manifest_have_the_locked_ray() -> None:
    locked = dict(re.findall(r"^(\S+)==(\S+)$", (CLUSTERS.parents[1] / "constraints.txt").read_text(), re.MULTILINE))
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == locked["ray"]
    assert f"FROM rayproject/ray:{locked['ray']}-py311-gpu" in (CLUSTERS / "Dockerfile").read_text()
