"""The cluster files: Ray's own check of what `ray up` reads, and KubeRay's manifests field by field."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from recollect.cluster import promised_nodes

ROOT = Path(__file__).parents[1]
LAUNCHED = ("cluster.yaml", "cluster.local.yaml")
KUBERAY = {"cluster": "RayCluster", "job": "RayJob", "service": "RayService"}
Change = Callable[[dict[str, Any]], object]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own check, which `ray up` makes first; returns what it makes of it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(found)
    return found


def marks(name: str) -> list[str]:
    """What follows the mark, or the line after a mark that has a line of its own."""
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if re.search(r"# CHANGE\b", line)]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_clusters_are_ones_that_ray_accepts(name: str) -> None:
    config = read(name)
    prepared(config)
    assert "~" not in config["file_mounts"] and all(key.startswith("~/") for key in config["file_mounts"])
    assert all("TOKEN" not in key.upper() for key in config)  # no secrets
    starts = [line for kind in ("head", "worker") for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in re.sub(r"RAY_enable_\S+ ", "", line) for line in starts)
    setup = " ".join(config["setup_commands"])
    extra = re.search(r"'\.\[(\w+)\]'", setup)
    with (ROOT / "pyproject.toml").open("rb") as stream:
        assert extra and extra.group(1) in tomllib.load(stream)["project"]["optional-dependencies"]
    assert "-c constraints.txt" in setup and "RECOLLECT_STORAGE=" in setup
    assert len(marks(name)) == {"cluster.yaml": 3, "cluster.local.yaml": 5}[name]


def test_what_a_cloud_needs_is_there() -> None:
    config = read("cluster.yaml")
    kinds = config["available_node_types"]
    assert kinds["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and kinds["gpu"]["max_workers"] == 4
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"], "a cluster does not outlive its head"
    assert all("IamInstanceProfile" in kind["node_config"] for kind in kinds.values()), "all of them write to the bucket"
    assert config["idle_timeout_minutes"] and not config["provider"]["cache_stopped_nodes"]
    assert "boto3" in " ".join(config["setup_commands"]), "the head starts the workers with it"


def test_machines_of_ones_own_all_join() -> None:
    """Ray 2.60's second autoscaler takes the head of such a cluster for a worker."""
    config = read("cluster.local.yaml")
    head = next(line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "RAY_enable_autoscaler_v2=0" in head
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(setup_comands=[]),
        lambda config: config.update(head_node_type="hed"),
        lambda config: config["available_node_types"]["gpu"]["resources"].update(CPU=0.5),
        lambda config: config.update(max_workers="many"),
        lambda config: config["provider"].update(typ="aws", type=None),
    ],
)
def test_a_misspelt_cluster_is_not(change: Change) -> None:
    config = read("cluster.yaml")
    change(config)
    with pytest.raises(Exception):  # noqa: B017  (Ray raises half a dozen kinds)
        prepared(config)


@pytest.mark.parametrize("name, nodes", [("cluster.yaml", 2), ("cluster.local.yaml", 3)])
def test_a_driver_on_the_head_knows_how_many_nodes_were_promised(name: str, nodes: int, tmp_path: Path) -> None:
    left = tmp_path / "ray_bootstrap_config.yaml"  # as `ray up` writes it
    left.write_text(json.dumps(prepared(read(name))))
    assert promised_nodes(left) == nodes
    assert promised_nodes(tmp_path / "none") == 1


def strict(fields: dict[str, Any], optional: str = "") -> dict[str, Any]:
    """A JSON schema: these fields and no others, all but the optional ones required."""
    required = [name for name in fields if name not in optional.split()]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


# What the custom resources of KubeRay 1.5.1 to 1.7.0 require of the fields that we use, written down by hand: the definitions
# themselves are a megabyte each. With KUBERAY_CRDS the manifests are held against those too.
STRING, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
AMOUNTS = strict({"cpu": STRING, "memory": STRING, "nvidia.com/gpu": STRING}, "nvidia.com/gpu")
CONTAINER = strict(
    {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "image": STRING,
        "env": listed(strict({"name": STRING, "value": STRING})),
        "envFrom": listed(strict({"secretRef": strict({"name": STRING, "optional": FLAG})})),
        "ports": listed(strict({"name": {"type": "string", "maxLength": 15}, "containerPort": COUNT})),
        "resources": strict({"requests": AMOUNTS, "limits": AMOUNTS}),
        "volumeMounts": listed(strict({"name": STRING, "mountPath": STRING})),
    },
    "env envFrom ports volumeMounts",
)
MEMORY = strict({"name": STRING, "emptyDir": strict({"medium": {"const": "Memory"}, "sizeLimit": STRING})})
POD = strict({"spec": strict({"containers": listed(CONTAINER), "volumes": listed(MEMORY)}, "volumes")})
START = {"type": "object", "additionalProperties": {"type": "string"}}  # of strings: num-cpus: "0", not 0
GROUP = strict(
    {
        "groupName": STRING,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": {"type": "integer", "minimum": 1},
        "rayStartParams": START,
        "template": POD,
    }
)
CLUSTER = strict(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "authOptions": strict({"mode": {"const": "token"}}),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": strict({"version": {"enum": ["v1", "v2"]}, "idleTimeoutSeconds": COUNT}),
        "headGroupSpec": strict({"rayStartParams": START, "template": POD}),
        "workerGroupSpecs": listed(GROUP),
    },
    "enableInTreeAutoscaling autoscalerOptions",
)
JOB = strict(
    {
        "entrypoint": STRING,
        "entrypointNumCpus": {"type": "number"},
        "backoffLimit": COUNT,
        "activeDeadlineSeconds": COUNT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": CLUSTER,
    }
)
SPECS = {"cluster": CLUSTER, "job": JOB, "service": strict({"serveConfigV2": STRING, "rayClusterConfig": CLUSTER})}


def manifest(kind: str) -> dict[str, Any]:
    return read(f"deploy/kuberay/{kind}.yaml")


def by_hand(kind: str) -> dict[str, Any]:
    name = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
    metadata = strict({"name": name})
    return strict(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": KUBERAY[kind]}, "metadata": metadata, "spec": SPECS[kind]}
    )


def cluster_of(kind: str) -> dict[str, Any]:
    spec = manifest(kind)["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


@pytest.mark.parametrize("kind", KUBERAY)
def test_the_manifests_have_the_fields_that_kuberay_requires(kind: str) -> None:
    jsonschema.validate(manifest(kind), by_hand(kind))
    cluster = cluster_of(kind)
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and cluster["rayVersion"] == pinned.group(1)
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [container for pod in pods for container in pod["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"], (
            "Ray reads the limits, Kubernetes the requests"
        )
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        mounts = {mount["name"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert "wget" in (ROOT / "Dockerfile").read_text(), "KubeRay's probes call it"


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["spec"].update(entryPoint="python x.py"),
        lambda job: job["spec"].pop("entrypoint"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"].update(rayStartParams={"num-cpus": 0}),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
    ],
)
def test_a_misspelt_manifest_is_found(change: Change) -> None:
    job = manifest("job")
    change(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, by_hand("job"))


def test_the_job_runs_a_script_that_takes_these_arguments() -> None:
    from experiments import tune_memory

    python, script, *arguments = shlex.split(manifest("job")["spec"]["entrypoint"])
    assert python == "python" and "WORKDIR /app\n" in (ROOT / "Dockerfile").read_text()
    assert (ROOT / script.removeprefix("/app/")).samefile(tune_memory.__file__)
    assert tune_memory.parser().parse_args(arguments).trials == 64


@pytest.mark.parametrize("kind", KUBERAY)
def test_the_manifests_are_valid_by_kuberays_own_definitions(kind: str) -> None:
    """KUBERAY_CRDS is the folder `ray-operator/config/crd/bases` of a copy of ray-project/kuberay."""
    folder = os.environ.get("KUBERAY_CRDS", "")
    if not folder:
        pytest.skip("no KubeRay definitions: KUBERAY_CRDS names none")
    definition = yaml.safe_load((Path(folder) / f"ray.io_ray{kind}s.yaml").read_text())
    schema = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(manifest(kind), schema)


def closed(schema: Any) -> Any:
    """The schema, where a field that it does not know is an error: Kubernetes would drop it without a word."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: closed(item) for name, item in schema.items()}
    open_ended = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    if made.get("type") == "object" and isinstance(made.get("properties"), dict) and not open_ended:
        made["additionalProperties"] = False
    return made
