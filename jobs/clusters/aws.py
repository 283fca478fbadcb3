"""What cluster.yaml names in an AWS account, made once: a bucket, two instance profiles, a security group.

    python jobs/clusters/aws.py BUCKET --ssh-from 203.0.113.7/32

Ray makes an instance profile by itself, but for the head alone, and one that may not give workers a profile of theirs;
and its security group lets the whole world knock at ssh. Run again, it adds another bucket, or moves ssh to another
address. Needs credentials that may do this (`aws configure`) and `pip install 'ovr-ray[aws]'`.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"
GROUP, HEAD, WORKER = "ovr-ray", "ovr-ray-head", "ovr-ray-worker"
"""Names of the security group and of the instance profiles, each with a role of the same name."""


def prepare(bucket: str, ssh_from: str, region: str) -> None:
    """Make all of it.

    Parameters
    ----------
    bucket : str
        For images, labels and run folders; private.
    ssh_from : str
        Addresses that may reach port 22, as a CIDR block; no other port is open to anyone.
    region : str
    """
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    _make(boto3.client("s3", region).create_bucket, "BucketAlreadyOwnedByYou", Bucket=bucket, **where)
    iam = boto3.client("iam", region)
    _make(iam.create_service_linked_role, "InvalidInput", "EntityAlreadyExists", AWSServiceName="spot.amazonaws.com")
    storage = {f"bucket-{bucket}": [_may_use(bucket)]}
    worker = _profile(iam, WORKER, storage)
    _profile(iam, HEAD, storage | {"start-workers": _may_start(worker)})
    ec2 = boto3.client("ec2", region)
    for vpc in ec2.describe_vpcs()["Vpcs"]:  # Ray takes whichever has the subnets that it likes best
        _security_group(ec2, vpc["VpcId"], ssh_from)


def _may_use(bucket: str) -> dict[str, Any]:
    actions = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return {"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}


def _may_start(worker_role: str) -> list[dict[str, Any]]:
    """What the autoscaler on the head does: start and end workers, and hand them their role."""
    actions = ["RunInstances", "TerminateInstances", "StopInstances", "StartInstances", "CreateTags", "Describe*"]
    machines = {"Effect": "Allow", "Action": [f"ec2:{action}" for action in actions], "Resource": "*"}
    image = {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"}
    return [machines, image, {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker_role}]


def _profile(iam: Any, name: str, policies: dict[str, list[dict[str, Any]]]) -> str:
    """An instance profile with a role of its own; returns the role's ARN."""
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    _make(iam.create_role, "EntityAlreadyExists", RoleName=name, AssumeRolePolicyDocument=_policy([trust]))
    for policy, statements in policies.items():
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=_policy(statements))
    _make(iam.create_instance_profile, "EntityAlreadyExists", InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(iam.get_role(RoleName=name)["Role"]["Arn"])


def _security_group(ec2: Any, vpc: str, ssh_from: str) -> None:
    """All traffic among the cluster's machines, ssh from outside; Ray leaves a group that has rules as it is."""
    told = {"GroupName": GROUP, "Description": "Ray cluster of ovr-ray", "VpcId": vpc}
    _make(ec2.create_security_group, "InvalidGroup.Duplicate", **told)
    names = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    group = ec2.describe_security_groups(Filters=names)["SecurityGroups"][0]
    doors = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    if doors:
        ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=doors)
    among_us = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group["GroupId"]}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]}
    for rule in (among_us, ssh):
        allow = {"GroupId": group["GroupId"], "IpPermissions": [rule]}
        _make(ec2.authorize_security_group_ingress, "InvalidPermission.Duplicate", **allow)


def _policy(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _make(call: Any, *there_already: str, **arguments: Any) -> None:
    """Make something, unless it is there, which is told by one of these codes."""
    try:
        call(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] not in there_already:
            raise


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bucket", help="S3 bucket for images, labels and runs; made if it is not there")
    told = "who may reach ssh, e.g. your own address: 203.0.113.7/32"
    parser.add_argument("--ssh-from", required=True, metavar="CIDR", type=_network, help=told)
    given = parser.parse_args()
    region = yaml.safe_load(CLUSTER.read_text())["provider"]["region"]
    try:
        prepare(given.bucket, given.ssh_from, region)
    except (BotoCoreError, ClientError) as error:
        print(f"AWS refused: {error}", file=sys.stderr)
        return 1
    print(f"{region}: bucket {given.bucket}, instance profiles {HEAD} and {WORKER}, security group {GROUP} are there")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
