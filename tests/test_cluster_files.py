"""cluster.yaml and jobs/kubernetes/: Ray's own schema, KubeRay's fields, and what neither of them notices."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit import ROOT
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.node_provider import IN_CLUSTER_TOKEN_PATH
from ray.autoscaler._private.util import prepare_config, validate_config

from raydistill.cluster import spot
from raydistill.cluster.placement import teacher_resources
from raydistill.cluster.resources import wanted_by_workers
from raydistill.cluster.room import GROUP, Node, announced_nodes, room
from raydistill.config.teacher import Pool
from raydistill.config.training import Train

AWS = ROOT / "cluster.yaml"
KUBERNETES = ROOT / "jobs" / "kubernetes"
FILES = (AWS, KUBERNETES / "raycluster.yaml", KUBERNETES / "rayjob.yaml")
GROUPS = {"trainer", "teacher", "cpu"}

# Fields of KubeRay v1.6.2 (its API reference), which the API server would refuse others beside, as far as used.
CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec", "rayVersion", "workerGroupSpecs"),
}
HEAD = {"template", "resources", "rayStartParams", "serviceType"}
WORKERS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "resources", "rayStartParams"),
    "template",
}
AUTOSCALER = {"securityContext", "idleTimeoutSeconds", "version", "volumeMounts"}
JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "entrypoint", "rayClusterSpec", "runtimeEnvYAML"),
    *("shutdownAfterJobFinishes", "submitterPodTemplate", "ttlSecondsAfterFinished"),
}
POD = {
    *("serviceAccountName", "automountServiceAccountToken", "restartPolicy", "tolerations", "containers", "volumes"),
    *("securityContext", "terminationGracePeriodSeconds"),
}
CONTAINER = {"name", "image", "env", "ports", "resources", "volumeMounts", "securityContext", "lifecycle"}
KUBERNETES_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def text_of(path: Path) -> str:
    """Without comments."""
    return re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8"))


def aws() -> dict[str, Any]:
    return yaml.safe_load(AWS.read_text(encoding="utf-8"))


def custom_resource() -> dict[str, Any]:
    cluster, _ = yaml.safe_load_all((KUBERNETES / "raycluster.yaml").read_text(encoding="utf-8"))
    return cluster


def job() -> dict[str, Any]:
    found, _ = yaml.safe_load_all((KUBERNETES / "rayjob.yaml").read_text(encoding="utf-8"))
    return found


def spec_of(path: Path) -> dict[str, Any]:
    return job()["spec"]["rayClusterSpec"] if path.name == "rayjob.yaml" else custom_resource()["spec"]


def autoscaling(path: Path) -> dict[str, Any]:
    """What Ray's autoscaler makes of the file, checked by its schema."""
    if path == AWS:
        config = prepare_config(aws())
    else:
        metadata = {"name": "raydistill", "namespace": "default"}
        config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": spec_of(path)})
    validate_config(config)
    return config


def groups(path: Path) -> dict[str, dict[str, Any]]:
    config = autoscaling(path)
    types = dict(config["available_node_types"])
    types["head"] = types.pop(config["head_node_type"])
    return types


def resources(group: dict[str, Any]) -> dict[str, int]:
    return {name: amount for name, amount in group["resources"].items() if name != "memory"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_takes_it(path):
    config = autoscaling(path)
    types = groups(path)
    assert types.keys() == {*GROUPS, "head"}
    workers = [types[name] for name in GROUPS]
    assert all(0 == group["min_workers"] < group["max_workers"] for group in workers)
    assert sum(group["max_workers"] for group in workers) <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert all(60 <= group["idle_timeout_s"] <= 900 for group in workers)


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_every_file_offers_the_same_groups(path):
    here, there = groups(AWS), groups(path)
    assert {name: resources(group) for name, group in there.items()} == {
        name: resources(group) for name, group in here.items()
    }
    for name in GROUPS:
        assert there[name]["max_workers"] == here[name]["max_workers"]
        assert there[name]["idle_timeout_s"] == here[name]["idle_timeout_s"]


def test_the_head_announces_what_its_autoscaler_can_bring():
    types = groups(AWS)
    head = Node("head", {name: float(amount) for name, amount in types["head"]["resources"].items() if amount})
    assert not head.total.get("CPU")
    found = {node.name: node for node in announced_nodes([head])}
    assert found.keys() == GROUPS == {name.removesuffix(GROUP) for name in head.total if name.endswith(GROUP)}
    for name, node in found.items():
        assert node.count == types[name]["max_workers"]
        assert {kind: amount for kind, amount in node.total.items() if amount} == resources(types[name])


def test_everything_finds_its_group_while_only_the_head_is_there():
    types = groups(AWS)
    head = Node("head", {name: float(amount) for name, amount in types["head"]["resources"].items() if amount})
    nodes = [head, *announced_nodes([head])]
    empty = [Node(name, {k: float(v) for k, v in resources(types[name]).items()}) for name in GROUPS]

    def takers(wanted: dict[str, float]) -> set[str]:
        return {node.name for node in empty if node.holds(wanted) >= 1}

    worker = wanted_by_workers(Train(num_workers=4), nodes)
    assert takers(worker) == {"trainer"}
    assert worker["CPU"] == worker["GPU"] * 8 == 8
    teacher = teacher_resources(Pool(max=8), Train(num_workers=4), nodes)
    assert takers(teacher) == {"teacher"}
    assert room(teacher, nodes) == 8
    trial = Train(resources_per_worker={"CPU": 4})
    assert "cpu" in takers(wanted_by_workers(trial, nodes, is_trial=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_object_store_finds_room_in_shared_memory(path):
    """Ray's own size, 30 % of the memory, would be more than that, and then on the disk."""
    if path == AWS:
        config = aws()
        (size,) = [option for option in config["docker"]["run_options"] if option.startswith("--shm-size=")]
        starts = [c for c in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]) if "start" in c]
        stores = [int(re.search(r"--object-store-memory=(\d+)", command)[1]) for command in starts]
        assert stores == [4e9, 4e9]
        assert max(stores) < int(size.removeprefix("--shm-size=").removesuffix("g")) * 2**30
        return
    spec = spec_of(path)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (shm,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert 1e9 < store < int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_closed(path):
    text = text_of(path)
    assert "0.0.0.0" not in text
    assert not re.search(r"(?i)auth_token: *[0-9a-f]{8}|password|AKIA|LoadBalancer|NodePort|enableIngress", text)
    if path == AWS:
        config = aws()
        for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
            assert "ray start" not in command or "RAY_AUTH_MODE=token ray start" in command
        assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
        (token,) = config["file_mounts"]
        assert config["file_mounts"][token] == "~/.ray/auth_token"
        assert f"chmod 600 {token}" in config["setup_commands"]
        options = " ".join(config["docker"]["run_options"])
        assert f"--env RAY_AUTH_TOKEN_PATH={token}" in options
        assert "--env RAY_AUTH_MODE=token" in options
    else:
        assert spec_of(path)["authOptions"] == {"mode": "token"}
        assert spec_of(path)["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_on_aws_only_teachers_are_on_spot_and_every_node_has_a_profile_of_ours():
    types = aws()["available_node_types"]
    on_spot = {name for name, group in types.items() if "InstanceMarketOptions" in group["node_config"]}
    assert on_spot == {"teacher"}
    for name, group in types.items():
        profile = group["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == ("raydistill-head" if name == "head" else "raydistill-worker")
        assert group["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert group["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/")
    assert any(option.startswith("--shm-size=") for option in aws()["docker"]["run_options"])
    assert aws()["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_kuberay_knows_every_field(path):
    spec = spec_of(path)
    assert spec.keys() <= CLUSTER
    assert spec["autoscalerOptions"].keys() <= AUTOSCALER
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"].keys() <= HEAD
    for group in spec["workerGroupSpecs"]:
        assert group.keys() <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in {**group["resources"], **group["rayStartParams"]}.values())
        pod = group["template"]["spec"]
        assert pod.keys() <= POD
        assert pod["restartPolicy"] == "Never"  # a pod is a node of Ray once only
        (container,) = pod["containers"]
        assert container.keys() <= CONTAINER
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert all(isinstance(value, str) for value in limits.values())
        assert limits.get("nvidia.com/gpu") == group["resources"].get("GPU")
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        mounted |= {"kubernetes-token"} if group is spec["headGroupSpec"] else set()
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_job_runs_in_the_same_cluster():
    wanted, found = custom_resource()["spec"], job()["spec"]["rayClusterSpec"]
    for group in (found["headGroupSpec"], *found["workerGroupSpecs"]):
        assert group["template"].pop("metadata") == {"labels": {"app": "raydistill-job"}}
    for spec in (wanted, found):
        pod = spec["headGroupSpec"]["template"]["spec"]
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "job"]
        mounts = pod["containers"][0]["volumeMounts"]
        pod["containers"][0]["volumeMounts"] = [mount for mount in mounts if mount["name"] != "job"]
    assert found == wanted


def test_the_job_goes_on_and_ends_with_its_cluster():
    spec = job()["spec"]
    assert job()["apiVersion"] == custom_resource()["apiVersion"] == "ray.io/v1"
    assert spec.keys() <= JOB
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert 3600 < spec["activeDeadlineSeconds"] <= 7 * 24 * 3600
    words = spec["entrypoint"].split()
    assert words[:4] == ["python", "-m", "raydistill", "distill"]
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert words[4].startswith(mounts["job"] + "/")
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment.keys() == {"MLFLOW_TRACKING_URI", "RAY_JOB_STOP_WAIT_TIME_S"}
    assert all(isinstance(value, str) for value in environment.values())


def test_only_the_clusters_own_pods_reach_it():
    cluster, policy = yaml.safe_load_all((KUBERNETES / "raycluster.yaml").read_text(encoding="utf-8"))
    assert policy["kind"] == "NetworkPolicy"
    own = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    assert policy["spec"] == {
        "podSelector": own,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": own}]}],
    }


def test_only_the_jobs_own_pods_and_the_operator_reach_it():
    found, policy = yaml.safe_load_all((KUBERNETES / "rayjob.yaml").read_text(encoding="utf-8"))
    own = {"matchLabels": found["spec"]["submitterPodTemplate"]["metadata"]["labels"]}
    operator = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"] == {
        "podSelector": own,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": own}]},
            {"from": [{"namespaceSelector": {}, "podSelector": operator}], "ports": [{"port": 8265}]},
        ],
    }


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_restricted_namespaces_take_every_pod(path):
    """What Kubernetes' profile "restricted" asks of pods and containers; the operator's own are made like ours."""
    spec = spec_of(path)
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    pods += [job()["spec"]["submitterPodTemplate"]["spec"]] if path.name == "rayjob.yaml" else []
    containers = [spec["autoscalerOptions"]]
    for pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(
            set(volume) - {"name"} <= {"emptyDir", "configMap", "projected"} for volume in pod.get("volumes", ())
        )
        containers += pod["containers"]
    for container in containers:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_only_the_autoscaler_has_a_token_of_kubernetes(path):
    """Drivers, workers and the submitter run what users send; the autoscaler is a container of its own on the head."""
    spec = spec_of(path)
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    pods += [job()["spec"]["submitterPodTemplate"]["spec"]] if path.name == "rayjob.yaml" else []
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert not [m for m in container.get("volumeMounts", ()) if m["mountPath"].startswith("/var/run/secrets")]
    (mount,) = spec["autoscalerOptions"]["volumeMounts"]
    assert f"{KUBERNETES_TOKEN}/token" == IN_CLUSTER_TOKEN_PATH
    assert (mount["mountPath"], mount["readOnly"]) == (KUBERNETES_TOKEN, True)
    (volume,) = [volume for volume in pods[0]["volumes"] if volume["name"] == mount["name"]]
    token, authority, namespace = volume["projected"]["sources"]
    assert token == {"serviceAccountToken": {"path": "token"}}
    assert [item["path"] for item in authority["configMap"]["items"]] == ["ca.crt"]
    assert [item["path"] for item in namespace["downwardAPI"]["items"]] == ["namespace"]


def test_spot_notices_reach_ray():
    """By the watcher beside Ray on AWS, by a hook of every pod that works on Kubernetes."""
    (command,) = [command for command in aws()["worker_start_ray_commands"] if "raydistill.cluster.spot" in command]
    assert command.startswith("RAY_ADDRESS=$RAY_HEAD_IP:6379 setsid nohup python -m raydistill.cluster.spot > ")
    assert command.endswith("< /dev/null &")
    for path in FILES[1:]:
        for group in spec_of(path)["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            words = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert words[:3] == ["python", "-m", spot.__name__]
            assert words[3] == "--seconds"
            assert float(words[4]) + 10 < pod["terminationGracePeriodSeconds"]
        assert "lifecycle" not in spec_of(path)["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_ray_opens_no_port_of_its_own_on_aws(monkeypatch):
    """Its own security group would take connections to port 22 from everywhere."""
    pytest.importorskip("boto3")
    from ray.autoscaler._private.aws import config as ray_aws

    def upsert(*_):
        raise AssertionError("Ray would make a security group")

    monkeypatch.setattr(ray_aws, "_upsert_security_groups", upsert)
    config = autoscaling(AWS)
    ray_aws._configure_security_group(config)
    found = {tuple(group["node_config"]["SecurityGroupIds"]) for group in config["available_node_types"].values()}
    assert found == {("sg-ID",)}
    assert "--port 22 --cidr YOUR-ADDRESS/32" in AWS.read_text()


def test_one_version_of_ray_and_of_the_image_everywhere():
    versions = {version for path in FILES for version in re.findall(r"rayproject/ray:([\d.]+)", path.read_text())}
    assert versions == {spec_of(path)["rayVersion"] for path in FILES[1:]}
    images = set(re.findall(r"image: (\S+)", "".join(text_of(path) for path in FILES)))
    assert len(images) == 1
    assert re.search(r":\d+\.\d+\.\d+$", images.pop())


def test_the_starter_is_the_file_itself():
    assert (ROOT / "jobs" / "cluster.yaml").resolve() == AWS


def test_a_mistake_is_found(tmp_path):
    config = aws()
    config["available_node_types"]["trainer"]["node_confg"] = {}
    with pytest.raises(Exception, match="node_confg"):
        validate_config(prepare_config(config))
    assert json.dumps(config)  # plain data: no anchor leaves anything behind
