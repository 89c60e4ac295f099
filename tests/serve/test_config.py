"""The deployment file and the builder's arguments, against Ray Serve's own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.serve
import yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from recollect.config import resolve
from serve.app import build
from serve.args import Args, checked_args

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serve" / "config.yaml"


@pytest.fixture
def application() -> Any:
    return ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text())).applications[0]


def test_the_file_is_what_serve_deploy_takes(application: Any) -> None:
    builder = resolve(application.import_path)
    assert builder is build
    built = call_user_app_builder_with_args_if_necessary(builder, application.args)  # as `serve deploy` calls it
    assert isinstance(built, ray.serve.Application)


def test_the_file_shows_every_argument_at_its_default(application: Any) -> None:
    given = dict(application.args)
    assert set(given) == set(Args.model_fields)
    chosen = {"bundle", "cpus_per_replica"}
    defaults = Args(bundle="x").model_dump(exclude=chosen)
    assert Args.model_validate(given).model_dump(exclude=chosen) == defaults


@pytest.mark.parametrize("wrong", [{"max_batch": 3}, {"device": "tpu"}, {"replicas": 0}, {"bundle": ""}])
def test_serve_checks_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        call_user_app_builder_with_args_if_necessary(build, {"bundle": "x", **wrong})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"replica": "2"}, "there is no argument 'replica' of a server; did you mean 'replicas'"),
        ({"replicas": "0"}, "replicas is '0': Input should be greater than or equal to 1"),
        ({"shards": 2}, "shards are parts of the index, and none is named"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas is 2, below replicas"),
        ({"bundles": {"": "x"}}, "bundles"),
    ],
)
def test_users_are_told_in_one_line(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        checked_args(bundle="x", **wrong)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_capacity_follows_the_batch() -> None:
    ingress = build(Args(bundle="x", max_batch_size=24, replicas=2, max_queued=10, device="cuda", gpus_per_replica=0.5))
    front = ingress._bound_deployment
    translator = front.init_args[0]._bound_deployment
    assert translator.name == "Translator" and translator.num_replicas == 2
    assert translator.max_ongoing_requests == 48 + 10 and translator.max_queued_requests == 10
    assert translator.ray_actor_options["num_gpus"] == 0.5
    assert front.max_ongoing_requests > 2 * 58 + 10  # the ingress must not be what fills up first


def test_on_kubernetes_the_same_is_deployed() -> None:
    spec = yaml.safe_load((ROOT / "deploy" / "kuberay" / "service.yaml").read_text())["spec"]
    deployed, own = yaml.safe_load(spec["serveConfigV2"]), yaml.safe_load(CONFIG.read_text())
    ServeDeploySchema.model_validate(deployed)
    (application,) = deployed["applications"]
    assert resolve(application["import_path"]) is build
    args = Args(**application["args"])
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert args.replicas * args.cpus_per_replica < int(limits["cpu"]), "the ingress needs some too"
    assert {**deployed, "applications": []} == {**own, "applications": []}
