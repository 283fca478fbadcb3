"""cluster.yaml, started by Ray's real AWS code on a simulated AWS in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from jobs.clusters import aws

PROJECT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
REGION = CONFIG["provider"]["region"]
HERE = "203.0.113.7/32"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty AWS account that jobs/clusters/aws.py has prepared; keys are written to a home of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
    with mock_aws():
        aws.prepare("my-bucket", HERE, REGION)
        yield


@pytest.fixture
def bootstrapped(account: None) -> dict[str, Any]:
    """cluster.yaml as Ray's AWS code completes it."""
    from ray.autoscaler._private import commands

    return commands._bootstrap_config(yaml.safe_load(yaml.safe_dump(CONFIG)), no_config_cache=True)


def test_every_node_type_starts_with_a_profile_that_may_use_the_bucket(bootstrapped: dict[str, Any]) -> None:
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    provider = _get_node_provider(bootstrapped["provider"], bootstrapped["cluster_name"])
    started = {}
    for name, node_type in bootstrapped["available_node_types"].items():
        kind = "head" if name == bootstrapped["head_node_type"] else "worker"
        provider.create_node(node_type["node_config"], {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
    for node in provider.non_terminated_nodes({}):
        instance = provider.ec2.Instance(node)
        market = instance.instance_lifecycle
        profile = instance.iam_instance_profile["Arn"].rpartition("/")[2]
        started[provider.node_tags(node)[TAG_RAY_USER_NODE_TYPE]] = (instance.instance_type, market, profile)
    assert started == {
        "head": ("m5.xlarge", None, "ovr-ray-head"),
        "gpu_worker": ("g5.xlarge", "spot", "ovr-ray-worker"),
        "gpu_fallback": ("g6.xlarge", None, "ovr-ray-worker"),
    }
    for role in ("ovr-ray-head", "ovr-ray-worker"):
        assert {"s3:PutObject", "s3:GetObject"} <= actions(role)["arn:aws:s3:::my-bucket/*"]


def test_the_head_may_give_workers_their_role_and_no_other(account: None) -> None:
    worker = boto3.client("iam").get_role(RoleName="ovr-ray-worker")["Role"]["Arn"]
    allowed = actions("ovr-ray-head")
    assert [resource for resource, may in allowed.items() if "iam:PassRole" in may] == [worker]
    assert "ec2:RunInstances" in allowed["*"]
    assert not any("ec2:" in action for may in actions("ovr-ray-worker").values() for action in may)


def test_the_only_open_port_is_ssh_from_the_given_address(bootstrapped: dict[str, Any]) -> None:
    node_types = bootstrapped["available_node_types"].values()
    (group,) = {group for node_type in node_types for group in node_type["node_config"]["SecurityGroupIds"]}
    named = boto3.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["GroupName"]
    assert (named, open_ports()) == ("ovr-ray", {(22, 22, HERE)})
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][-1]


def test_preparing_an_account_again_adds_a_bucket_and_moves_ssh_to_another_address(account: None) -> None:
    aws.prepare("my-other-bucket", "198.51.100.9/32", REGION)
    for role in ("ovr-ray-head", "ovr-ray-worker"):
        assert {"arn:aws:s3:::my-bucket/*", "arn:aws:s3:::my-other-bucket/*"} <= actions(role).keys()
    assert open_ports() == {(22, 22, "198.51.100.9/32")}


def test_every_network_of_the_region_has_the_group(account: None) -> None:
    boto3.client("ec2").create_vpc(CidrBlock="10.1.0.0/16")
    aws.prepare("my-bucket", HERE, REGION)
    groups = boto3.client("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": ["ovr-ray"]}])
    assert len({group["VpcId"] for group in groups["SecurityGroups"]}) == 2
    assert open_ports() == {(22, 22, HERE)}


def open_ports() -> set[tuple[int, int, str]]:
    """Return the ports that our security groups open, as first port, last port and addresses."""
    named = [{"Name": "group-name", "Values": ["ovr-ray"]}]
    groups = boto3.client("ec2").describe_security_groups(Filters=named)["SecurityGroups"]
    rules = [rule for group in groups for rule in group["IpPermissions"]]
    assert not any(rule["Ipv6Ranges"] for rule in rules)
    return {(rule["FromPort"], rule["ToPort"], span["CidrIp"]) for rule in rules for span in rule["IpRanges"]}


def test_a_refusal_of_aws_is_reported_without_a_stack_trace(
    account: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["aws.py", "no", "--ssh-from", HERE])
    assert aws.main() == 1
    assert "AWS refused" in capsys.readouterr().err


@pytest.mark.parametrize(("lacking", "chosen"), [([], "gpu_worker"), (["gpu_worker"], "gpu_fallback")])
def test_spot_machines_are_requested_first_all_at_once_and_others_if_there_are_none(
    lacking: list[str], chosen: str
) -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    assert {node_type["min_workers"] for node_type in CONFIG["available_node_types"].values()} == {0}
    config = AutoscalingConfig(CONFIG, skip_content_hash=True)
    trials = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"CPU": 4, "GPU": 1})] * 8)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=trials,
        recoverable_resource_availabilities=dict.fromkeys(lacking, 0.0),
    )
    launched = ResourceDemandScheduler().schedule(request).to_launch
    assert {launch.instance_type: launch.count for launch in launched if launch.instance_type != "head"} == {chosen: 8}


def test_image_and_setup_are_those_of_the_lock() -> None:
    locked = dict(re.findall(r"^(\S+)==(\S+)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE))
    ray, minor = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)-gpu", CONFIG["docker"]["image"]).groups()  # type: ignore[union-attr]
    assert ray == locked["ray"]
    assert minor in ("11", "12", "13")
    assert any("constraints.txt" in command for command in CONFIG["setup_commands"])


def test_every_cluster_file_asks_for_the_token_and_passes_rays_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    for file in (PROJECT / "cluster.yaml", PROJECT / "jobs" / "clusters" / "onprem.yaml"):
        config = yaml.safe_load(file.read_text())
        validate_config(prepare_config(config))
        for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
            assert "RAY_AUTH_MODE=token" in command


def actions(role: str) -> dict[str, set[str]]:
    """Return the actions that a role may take, by resource."""
    iam = boto3.client("iam")
    allowed: dict[str, set[str]] = {}
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        policy = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for statement in (json.loads(policy) if isinstance(policy, str) else policy)["Statement"]:
            resources, may = (v if isinstance(v, list) else [v] for v in (statement["Resource"], statement["Action"]))
            for resource in resources:
                allowed.setdefault(resource, set()).update(may)
    return allowed
