"""``deploy/kuberay``: what it renders fits the schemas of its kinds and this project.

Checked: every field of pods, policies and claims against Kubernetes' own schemas; RayService and
RayJob against the fields of KubeRay's that are used (``kuberay_schema.yaml``); the Serve
application inside, the names that the files know each other by, and the settings. No cluster.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from service.deployment import INGRESS, build
from service.settings import ServiceSettings
from trainer.rloo.config import RlooSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
RAY_KINDS = ("RayService", "RayJob")
PART_OF = {"app.kubernetes.io/part-of": "sumzero"}


def tool() -> list[str] | None:
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


@cache
def documents() -> tuple[dict[str, Any], ...]:
    """Everything that both kustomizations name, as it is written."""
    found: list[dict[str, Any]] = []
    for folder in (FOLDER, FOLDER / "rloo"):
        content = yaml.safe_load((folder / "kustomization.yaml").read_text())
        for resource in content["resources"]:
            found += yaml.safe_load_all((folder / resource).read_text())
    return tuple(found)


def named(kind: str) -> dict[str, Any]:
    (found,) = (one for one in documents() if one["kind"] == kind)
    return found


def ray_cluster(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    return cluster


def templates(kinds: tuple[str, ...] = (*RAY_KINDS, "Deployment")) -> Iterator[Any]:
    """Every pod template, with a name to tell it by."""
    for document in documents():
        if document["kind"] not in kinds:
            continue
        if document["kind"] == "Deployment":
            yield f"{document['metadata']['name']}", document["spec"]["template"]
            continue
        cluster = ray_cluster(document)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield (
                f"{document['metadata']['name']}/{group.get('groupName', 'head')}",
                group["template"],
            )


TEMPLATES = dict(templates())
RAY_TEMPLATES = dict(templates(RAY_KINDS))
CONTAINERS = {
    f"{name}/{container['name']}": container
    for name, template in TEMPLATES.items()
    for container in template["spec"]["containers"]
}


def as_kubernetes_reads(template: dict[str, Any]) -> dict[str, Any]:
    """A pod template on its own is a kind of Kubernetes, so its schema can be asked."""
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_fit_the_schema_of_kubernetes(name: str) -> None:
    kubernetes_validate.validate(as_kubernetes_reads(TEMPLATES[name]), "1.33", strict=True)


def test_the_schema_of_kubernetes_refuses_what_it_does_not_know() -> None:
    wrong = {"spec": {"containers": [{"name": "a", "image": "b", "livenesProbe": {}}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(as_kubernetes_reads(wrong), "1.33", strict=True)


@pytest.mark.parametrize("document", documents(), ids=lambda one: one["kind"])
def test_every_document_fits_the_schema_of_its_kind(document: dict[str, Any]) -> None:
    if document["kind"] in RAY_KINDS:
        jsonschema.validate(document, SCHEMA)
    else:
        kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.skipif(tool() is None, reason="needs kubectl or kustomize")
@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "rloo"], ids=["service", "rloo"])
def test_what_kustomize_renders_has_one_namespace_and_tagged_images(folder: Path) -> None:
    done = subprocess.run(
        [*(tool() or []), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    assert {one["metadata"].get("namespace", "sumzero") for one in rendered} == {"sumzero"}
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert images
    assert all(":" in image for image in images), images
    for one in rendered:
        if one["kind"] in RAY_KINDS:
            jsonschema.validate(one, SCHEMA)
        else:
            kubernetes_validate.validate(one, "1.33", strict=True)
    maps = {one["metadata"]["name"] for one in rendered if one["kind"] == "ConfigMap"}
    asked = set(re.findall(r"configMap:\n\s+name: (\S+)", done.stdout))
    assert asked == maps


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_confined(name: str) -> None:
    container = CONTAINERS[name]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert container["readinessProbe"]
    assert container["livenessProbe"]
    if "vllm" not in name:
        assert security["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_run_without_root_and_mount_what_they_have(name: str) -> None:
    spec = TEMPLATES[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if len(v) > 1
              and "persistentVolumeClaim" in v]  # fmt: skip
    assert claims == [named("PersistentVolumeClaim")["metadata"]["name"]]


@pytest.mark.parametrize("name", RAY_TEMPLATES)
def test_gpus_are_for_workers_and_not_for_heads(name: str) -> None:
    (container,) = RAY_TEMPLATES[name]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) is not name.endswith("/head")


def test_the_network_policy_holds_for_every_pod() -> None:
    policy = named("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == PART_OF
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for name, template in TEMPLATES.items():
        assert template["metadata"]["labels"].items() >= PART_OF.items(), name
    for rule in policy["ingress"]:
        own = {"podSelector": {"matchLabels": PART_OF}}
        assert rule["from"] == [own] or rule["ports"], "outsiders get ports by name"


def test_the_serve_application_is_one_that_builds() -> None:
    content = yaml.safe_load(named("RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(content)
    (application,) = content["applications"]
    settings = ServiceSettings(**application["args"])
    assert {block["name"] for block in application["deployments"]} == {INGRESS} | {
        f"model-{model.name}" for model in settings.model
    }
    assert build(application["args"])._bound_deployment.name == INGRESS
    mounted = {m["mountPath"] for c in CONTAINERS.values() for m in c["volumeMounts"]}
    for model in settings.model:
        assert str(model.path).startswith(tuple(mounted))


def test_replicas_fit_the_workers() -> None:
    content = yaml.safe_load(named("RayService")["spec"]["serveConfigV2"])
    (group,) = ray_cluster(named("RayService"))["workerGroupSpecs"]
    blocks = {block["name"]: block for block in content["applications"][0]["deployments"]}
    scaling = blocks["model-bsr"]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (
        group["minReplicas"],
        group["maxReplicas"],
    )
    assert blocks["ingress"]["num_replicas"] <= group["minReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    cores = sum(block["ray_actor_options"]["num_cpus"] for block in blocks.values())
    assert cores <= int(container["resources"]["requests"]["cpu"])


def test_the_version_of_ray_is_the_one_in_the_image() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for kind in RAY_KINDS:
        assert ray_cluster(named(kind))["rayVersion"] == pinned[1]


def test_the_version_of_vllm_is_the_one_that_is_tested() -> None:
    images = yaml.safe_load((FOLDER / "rloo" / "kustomization.yaml").read_text())["images"]
    (tag,) = (image["newTag"] for image in images if "vllm" in image["name"])
    pinned = re.search(
        r"^vllm(?:-cpu)?==(.*)$", (ROOT / "constraints-vllm.txt").read_text(), re.MULTILINE
    )
    assert pinned
    assert tag == f"v{pinned[1]}"


def test_the_run_finds_the_service_and_vllm() -> None:
    settings = RlooSettings(**yaml.safe_load((FOLDER / "rloo" / "rloo.yaml").read_text()))
    service = named("RayService")["metadata"]["name"]
    assert settings.reward.url == f"http://{service}-serve-svc:8000"
    vllm = named("Service")
    (port,) = vllm["spec"]["ports"]
    assert settings.generation.urls == [f"http://{vllm['metadata']['name']}:{port['port']}"]
    deployment = named("Deployment")
    assert vllm["spec"]["selector"].items() <= (
        deployment["spec"]["template"]["metadata"]["labels"].items()
    )
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--model={settings.policy}" in arguments
    (limit,) = re.findall(r"--max-model-len=(\d+)", str(arguments))
    generation = settings.generation
    assert generation.max_prompt_tokens + generation.max_new_tokens <= int(limit)
    assert "/etc/rloo/rloo.yaml" in named("RayJob")["spec"]["entrypoint"]


def test_probes_ask_with_a_script_that_the_image_has() -> None:
    for container in CONTAINERS.values():
        for probe in ("readinessProbe", "livenessProbe"):
            command = container[probe].get("exec", {}).get("command")
            if command:
                assert command[0] == "python"
                assert (ROOT / Path(command[1]).relative_to("/opt/sumzero")).is_file()
