"""The files for clusters are what Ray and Kubernetes read, and what the code needs.

No image is built and no cluster started: Ray's own validation, Ray's reading of a RayCluster, the
published schemas of Kubernetes, and the fields of a RayJob from KubeRay's API reference.
"""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from pipelines.cluster.capacity import Node, max_concurrent_jobs, require_capacity
from pipelines.compat.ray import TOKEN_FILE
from pipelines.experiment import Experiment, load
from tests.pages import blocks, commands, page

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "cluster"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M))
CHAPTER = page("cluster")
KUBERNETES = "1.37"
GROUP = {
    "groupName": {"type": "string"},
    "replicas": {"type": "integer"},
    "minReplicas": {"type": "integer"},
    "maxReplicas": {"type": "integer"},
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": {"type": "object"},
}
RAY_JOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "runtimeEnvYAML": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
                "backoffLimit": {"type": "integer"},
                "activeDeadlineSeconds": {"type": "integer"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"mode": {"enum": ["disabled", "token"]}},
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["template"],
                            "properties": {
                                key: GROUP[key] for key in ("rayStartParams", "template")
                            },
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                                "properties": GROUP,
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The fields that the manifest may use, from https://ray-project.github.io/kuberay/reference/api/."""


def read(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load((FOLDER / name).read_text())


@pytest.fixture
def ray_up() -> dict[str, Any]:
    return read("ray-up.yaml")


@pytest.fixture
def job() -> dict[str, Any]:
    return read("rayjob.yaml")


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for group in groups(job) for c in group["template"]["spec"]["containers"]]


def as_rays_autoscaler_reads(job: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError or jsonschema's ValidationError for what it cannot read."""
    metadata = {"namespace": "default", **job["metadata"]}
    cluster = {"metadata": metadata, "spec": job["spec"]["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(cluster)


def nodes(cluster: dict[str, Any]) -> list[Node]:
    """What an autoscaler's configuration has from the beginning."""
    return [
        Node(name, kind["resources"]["CPU"], kind["resources"].get("GPU", 0))
        for name, kind in cluster["available_node_types"].items()
        for _ in range(1 if name == cluster["head_node_type"] else kind["min_workers"])
    ]


def configured(command: list[str]) -> Experiment:
    """What a `python pipelines/sweep.py ...` is a run of."""
    python, script, *arguments = (word.removeprefix("/dca-gpt/") for word in command)
    assert python == "python"
    assert (ROOT / script).is_file()
    experiment, *changes = arguments
    return load([str(ROOT / experiment), *changes], grids=True)


def test_ray_up_is_what_rays_own_validation_takes(ray_up):
    prepared = prepare_config(copy.deepcopy(ray_up))
    validate_config(prepared)
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == []
    ray_up["available_node_types"]["worker"]["minworkers"] = 4
    with pytest.raises(jsonschema.ValidationError, match="minworkers"):
        validate_config(prepare_config(ray_up))


def test_the_ray_job_has_fields_of_a_ray_job_alone(job):
    jsonschema.validate(job, RAY_JOB)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas")
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(job, RAY_JOB)


def test_the_pods_are_valid_by_the_schemas_of_kubernetes(job):
    for group in groups(job):
        pod = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": job["metadata"],
            "template": group["template"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        group["template"]["spec"]["containers"][0]["imagee"] = "x"
        with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_only_the_pods_of_the_job_its_submitter_and_the_operator_reach_rays_ports(job):
    policy = read("networkpolicy.yaml")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert all(group["template"]["metadata"]["labels"] == selected for group in groups(job))
    own, others = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": selected}}]}
    submitter, _operator = others["from"]
    name = submitter["podSelector"]["matchLabels"]["batch.kubernetes.io/job-name"]
    assert name == job["metadata"]["name"]
    assert [port["port"] for port in others["ports"]] == [8265]
    policy["spec"]["podSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="podSelectors"):
        kubernetes_validate.validate(policy, KUBERNETES, strict=True)


def test_every_machine_of_both_asks_for_a_token(ray_up, job):
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert ray_up["docker"]["run_options"] == ["--env RAY_AUTH_MODE=token"]
    ((target, source),) = ray_up["file_mounts"].items()
    assert Path(source) == Path("~") / TOKEN_FILE
    assert "useradd --create-home ray" in DOCKERFILE
    assert Path(target) == Path("/home/ray") / TOKEN_FILE


def test_rays_autoscaler_reads_the_ray_jobs_cluster(job):
    read = as_rays_autoscaler_reads(job)
    assert [(node.cpus, node.gpus) for node in nodes(read)] == [(0, 0), *[(4, 1)] * 4]
    memory = {kind["resources"]["memory"] for kind in read["available_node_types"].values()}
    assert memory == {32 << 30, 24 << 30}
    containers(job)[-1]["resources"] = {}
    with pytest.raises(ValueError, match="CPU"):
        as_rays_autoscaler_reads(job)


def test_the_ray_jobs_entry_point_is_a_sweep_that_fits_its_cluster(job):
    config = configured(shlex.split(job["spec"]["entrypoint"]))
    assert config.storage.startswith("s3://")
    cluster = nodes(as_rays_autoscaler_reads(job))
    assert max_concurrent_jobs(cluster, config.resources) == 4
    require_capacity(cluster, config.fit.resources, "fit.resources")
    assert (
        sum(node.worker_capacity(config.fit.resources) for node in cluster)
        == config.fit.resources.max_workers
    )


def test_the_chapters_experiment_fits_what_ray_up_makes(ray_up):
    config = load([str(ROOT / "experiments" / "enwik8.yaml")])
    assert max_concurrent_jobs(nodes(prepare_config(ray_up)), config.resources) == 4


def test_the_clusters_have_their_size_from_the_beginning(ray_up, job):
    for cluster in (prepare_config(ray_up), as_rays_autoscaler_reads(job)):
        for kind in cluster["available_node_types"].values():
            assert kind["min_workers"] == kind["max_workers"]
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"]


def test_the_head_trains_nothing(ray_up, job):
    for cluster in (prepare_config(ray_up), as_rays_autoscaler_reads(job)):
        head = cluster["available_node_types"][cluster["head_node_type"]]
        assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)


def test_the_image_has_the_python_and_the_packages_of_the_lock(job):
    (python,) = re.findall(r"^FROM python:([\d.]+)-\S+ AS packages", DOCKERFILE, re.M)
    environment = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][0] == f"python={python}"
    assert "pip install --no-cache-dir --requirement /tmp/requirements.lock" in DOCKERFILE
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    assert "boto3" in LOCK  # with which ray up's head starts the others


def test_the_image_holds_what_it_copies_and_knows_its_commit(ray_up, job):
    stages = re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.M)
    assert stages == ["packages", "code"]
    for sources in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M):
        assert all((ROOT / source).exists() for source in sources.split())
    packages, code = DOCKERFILE.split("FROM packages AS code")
    assert "ENV DCA_GPT_COMMIT=$COMMIT" in code
    assert "COMMIT" not in packages.partition("\nFROM ")[2]
    assert ray_up["docker"]["image"].endswith(f":{stages[0]}")
    assert {c["image"].partition(":")[2] for c in containers(job)} == {"COMMIT"}
    assert re.search(r"^WORKDIR /dca-gpt$", DOCKERFILE, re.M)


KNOWN = {
    "MLFLOW_TRACKING_URI": "pipelines/tracking/uri.py",
    "DCA_GPT_COMMIT": "pipelines/tracking/schema.py",
    "RAY_ADDRESS": "pipelines/cluster/connection.py",
}
LIBRARIES = {
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_MODE", "RAY_TMPDIR"),
}


def test_the_environment_is_what_the_code_and_its_libraries_read(job):
    named = {e["name"] for c in containers(job) for e in c["env"]}
    named |= set(re.findall(r"^ENV (\w+)=", DOCKERFILE, re.M))
    named |= set(re.findall(r'\b([A-Z]+_[A-Z_]+)"?[=:]', CHAPTER))
    assert named - LIBRARIES <= set(KNOWN)
    for name in named - LIBRARIES:
        assert f'"{name}"' in (ROOT / KNOWN[name]).read_text(), name


def test_no_secret_is_in_a_file(job):
    for variable in (e for c in containers(job) for e in c["env"]):
        secret = variable["name"] != "MLFLOW_TRACKING_URI"
        assert ("valueFrom" in variable) is secret
        assert secret is not ("value" in variable)
    for path in FOLDER.iterdir():
        assert not re.search(
            r"(?i)(password|secret|token)\S*\s*[:=]\s*[\"']?\w{8,}", path.read_text()
        )
    assert not re.search(r"://[^/\s]*:[^/\s]*@", CHAPTER)


def test_the_chapters_commands_are_what_their_programs_take():
    from mlflow.cli import server as mlflow_server  # seconds, which no other test needs
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import cli as ray_cli

    found = [c for block in blocks(CHAPTER, "bash") for c in commands(block)]
    submitted = [c[3:] for c in found if c[:3] == ["ray", "job", "submit"]]
    served = [c[2:] for c in found if c[:2] == ["mlflow", "server"]]
    swept = [c[c.index("python") :] for c in found if "pipelines/sweep.py" in c]
    assert submitted
    assert served
    assert len(swept) > len(submitted)
    for _, command, *arguments in (c for c in found if c[0] == "ray" and c[1] != "job"):
        named = ray_cli.commands[command].make_context(command, arguments).params
        assert "cluster_config_file" not in named or (ROOT / named["cluster_config_file"]).is_file()
    for arguments in submitted:
        taken = submit.make_context("submit", arguments).params
        assert taken["working_dir"] == "."
        assert {"MLFLOW_TRACKING_URI", "DCA_GPT_COMMIT"} == set(
            YAML(typ="safe").load(taken["runtime_env_json"])["env_vars"]
        )
    for arguments in served:
        assert mlflow_server.make_context("server", arguments).params["allowed_hosts"]
    for command in swept:
        configured(command)
