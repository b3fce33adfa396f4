"""What `cluster/` ships is valid before any cluster sees it.

Manifests are checked against KubeRay's own schemas, made strict: the API server drops a field that
it does not know without a word. The schemas are not part of the repository: they lie beside the
checkout or where RAY_CRD_SCHEMAS points, and the checks that need them are skipped elsewhere.
"""

import copy
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rematch_ray.index.maxsim_library import is_built

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = Path(os.environ.get("RAY_CRD_SCHEMAS", ROOT.parent / "shared" / "kuberay-crds"))
MANIFESTS = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
RAY_SERVICE = ROOT / "cluster" / "kuberay" / "rayservice.yaml"
RAY_UP = sorted((ROOT / "cluster" / "ray-up").glob("*.yaml"))
IMAGE_ROOT = "/home/ray/rematch-ray"

needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason=f"no KubeRay schemas in {SCHEMAS}: set RAY_CRD_SCHEMAS"
)


def strict(schema: Any) -> Any:
    """Return a structural schema of Kubernetes as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items()}
    if result.get("format") in ("int32", "int64"):
        del result["format"]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
        # the API server fills these in before it validates
        defaulted = {name for name, field in properties.items() if "default" in field}
        if isinstance(required := schema.get("required"), list):
            result["required"] = [name for name in required if name not in defaulted]
    return result


def errors_of(manifest: dict[str, Any]) -> list[str]:
    name = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
    stored = json.loads((SCHEMAS / f"{name[manifest['kind']]}.v1.json").read_text())
    validator = jsonschema.Draft7Validator(strict(stored["openAPIV3Schema"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(manifest)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pinned(package: str) -> str:
    constraints = (ROOT / "constraints.txt").read_text()
    match = re.search(rf"^{package}==(.+)$", constraints, re.MULTILINE)
    assert match
    return match.group(1)


def test_all_kinds_are_shipped() -> None:
    kinds = sorted(load(path)["kind"] for path in MANIFESTS)
    assert kinds == ["RayCluster", "RayJob", "RayJob", "RayService"]


@needs_schemas
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_what_kuberay_accepts(path: Path) -> None:
    assert not errors_of(load(path))


@needs_schemas
@pytest.mark.parametrize(
    ("field", "wrong"), [("entryPoint", "python x.py"), ("backoffLimit", "two")]
)
def test_a_misspelt_field_and_a_wrong_type_are_found(field: str, wrong: str) -> None:
    manifest = copy.deepcopy(load(ROOT / "cluster" / "kuberay" / "rayjob-train.yaml"))
    manifest["spec"][field] = wrong
    assert any(field in error for error in errors_of(manifest))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_runs_the_pinned_ray(path: Path) -> None:
    assert cluster_of(load(path))["rayVersion"] == pinned("ray")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_asks_for_rays_token(path: Path) -> None:
    assert cluster_of(load(path))["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_node_has_what_it_asks_for_and_sees_the_storage(path: Path) -> None:
    for group in groups_of(load(path)):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts["storage"] == "/mnt/shared"
            assert set(mounts) <= volumes


@pytest.mark.parametrize("path", [p for p in MANIFESTS if "job" in p.stem], ids=lambda p: p.stem)
def test_a_job_starts_a_program_of_ours_with_arguments_it_accepts(path: Path) -> None:
    from rematch_ray.cli import VERBS, verb_parser

    python, program, *arguments = shlex.split(load(path)["spec"]["entrypoint"])
    assert python == "python"
    assert program.startswith(f"{IMAGE_ROOT}/jobs/")
    for name in (program, *arguments):
        if name.startswith(IMAGE_ROOT):
            assert (ROOT / Path(name).relative_to(IMAGE_ROOT)).is_file(), name
    verb = Path(program).stem
    command = importlib.import_module(f"rematch_ray.commands.{VERBS[verb].module}")
    verb_parser(verb, command).parse_args(arguments)


def test_the_embedding_job_fits_one_worker_and_its_processes_may_become_more() -> None:
    from rematch_ray.config import EmbedJobSettings, read_settings
    from rematch_ray.workloads.embed import embed_bundles
    from rematch_ray.workloads.runtime import refuse_what_does_not_fit

    manifest = load(ROOT / "cluster" / "kuberay" / "rayjob-embed.yaml")
    overrides = [
        word for word in shlex.split(manifest["spec"]["entrypoint"]) if "=" in word.split("/")[0]
    ]
    settings = read_settings(EmbedJobSettings, None, overrides)
    assert settings.max_actors > settings.min_actors
    (group,) = cluster_of(manifest)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    worker = {"CPU": float(container["resources"]["limits"]["cpu"])}
    refuse_what_does_not_fit(embed_bundles(settings, resumes=True), [worker])
    every = settings.model_copy(update={"num_actors": settings.max_actors})
    refuse_what_does_not_fit(embed_bundles(every, resumes=True), group["maxReplicas"] * [worker])


def test_the_service_is_one_that_serve_and_our_application_accept() -> None:
    from ray.serve.schema import ServeDeploySchema

    from rematch_ray.serve.settings import ServeArgs

    config = yaml.safe_load(load(RAY_SERVICE)["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert application.import_path == "rematch_ray.serve.app:build"
    ServeArgs.model_validate(application.args)
    assert config == load(ROOT / "cluster" / "serve.yaml")


def test_the_service_scales_and_its_workers_have_room_for_that() -> None:
    from rematch_ray.serve.settings import ServeArgs

    manifest = load(RAY_SERVICE)
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    args = ServeArgs.model_validate(application["args"])
    scaled = [args.encoder, args.shard]
    assert all(part.max_replicas and part.max_replicas > part.num_replicas for part in scaled)
    (workers,) = cluster_of(manifest)["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])
    for nodes, replicas in (("minReplicas", "num_replicas"), ("maxReplicas", "max_replicas")):
        taken = sum(part.num_cpus * getattr(part, replicas) for part in scaled)
        assert taken <= cpus * workers[nodes]


def test_every_node_of_the_service_starts_ray_with_haproxy_in_front() -> None:
    from rematch_ray.serve import tuning

    ports = {"RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"}
    wanted = {name: value for name, value in tuning.haproxy(0, 0).items() if name not in ports}
    for group in groups_of(load(RAY_SERVICE)):
        (container,) = group["template"]["spec"]["containers"]
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        assert given == wanted
    explained = (ROOT / "cluster" / "serve.yaml").read_text()
    assert all(f"{name}={value}" in explained for name, value in wanted.items())


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_a_cluster_file_is_what_ray_up_accepts(path: Path) -> None:
    # found, not imported: the schema is a file in the wheel
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    assert not [error.message for error in validator.iter_errors(load(path))]
    assert list(validator.iter_errors({**load(path), "max_worker": 1}))


def test_the_image_has_the_pinned_versions_and_copies_what_exists() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-py311", text)) == {pinned("ray")}
    assert f"torch=={pinned('torch')}\n" in text
    for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    assert f"WORKDIR {IMAGE_ROOT}" in text


def test_the_image_asks_for_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    [asked] = re.findall(r"rematch-ray\[(.+)\] @", text)
    [usual] = re.findall(r"^ARG EXTRA=(.+)$", text, re.MULTILINE)
    [gpu] = re.findall(r"--build-arg EXTRA=(\S+)", text)
    for extra in (usual, gpu):
        names = set(asked.replace("${EXTRA}", extra).split(","))
        assert names <= set(extras["optional-dependencies"])


def test_the_image_is_not_built_without_the_kernel() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    [check] = re.findall(r'^RUN python -c "(.+)"$', text, re.MULTILINE)
    hidden = "import rematch_ray.index.maxsim_library as library; library.MODULE = 'rematch_ray.no'"
    assert _status(check) == int(not is_built())
    assert _status(f"{hidden}; {check}") == 1
    # sources that lay beside what starts there would be imported in place of what is installed
    copied = re.findall(r"^COPY --chown=\S+ (.+)$", text.split("\nFROM ")[-1], re.MULTILINE)
    assert copied == ["constraints.txt ./", "jobs ./jobs"]


def _status(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
