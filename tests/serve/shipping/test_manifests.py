"""The manifests, the container file and the bento of a shipment: valid, and in agreement with the server."""

import base64
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from serve.access.key_file import add_key, parse_keys
from serve.prediction import Memory as Room
from serve.settings import Settings, read_settings
from serve.shipping.plan import plan_shipment, write_shipment
from tests.serve.conftest import BENTOML_WARNINGS
from tests.serve.shipping.container_steps import KNOWN, read_instructions

pytestmark = BENTOML_WARNINGS

# kserve 0.21.0, kserve/models/v1beta1_*.py: what `attribute_map` has beyond the Kubernetes PodSpec.
KSERVE_SPEC = {"canary", "explainer", "predictor", "tracing", "transformer"}
KSERVE_PREDICTOR = {
    "annotations": dict,
    "autoScaling": dict,
    "batcher": dict,
    "canaryTrafficPercent": int,
    "containerConcurrency": int,
    "deploymentStrategy": dict,
    "labels": dict,
    "logger": dict,
    "maxReplicas": int,
    "minReplicas": int,
    "scaleMetric": str,
    "scaleMetricType": str,
    "scaleTarget": int,
    "timeout": int,
}


@pytest.fixture(scope="module")
def with_keys(output, tmp_path_factory):
    root = tmp_path_factory.mktemp("keys")
    add_key(root / "keys.toml", "phone")
    out = root / "out"
    write_shipment(plan_shipment([output / "good"], root=output, keys_file=root / "keys.toml"), out)
    return out


def _manifests(path: Path) -> dict[str, dict]:
    documents = list(yaml.safe_load_all(path.read_text()))
    return {document["kind"]: document for document in documents}


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_manifests_fit_the_schemas_of_kubernetes(folder, with_keys):
    version = kubernetes_validate.latest_version()
    version = ".".join(version.split(".")[:2])
    for path in (folder, with_keys):
        documents = _manifests(path / "kubernetes.yaml")
        assert set(documents) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
        for document in documents.values():
            kubernetes_validate.validate(document, version, strict=True)
    (secret,) = yaml.safe_load_all((with_keys / "secret.yaml").read_text())
    kubernetes_validate.validate(secret, version, strict=True)
    broken = _manifests(folder / "kubernetes.yaml")["Deployment"]
    broken["spec"]["template"]["spec"]["contaners"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_the_manifests_agree_with_each_other_and_with_the_server(folder):
    documents = _manifests(folder / "kubernetes.yaml")
    pod = documents["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    assert documents["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert documents["Service"]["spec"]["selector"].items() <= labels.items()
    assert documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    scaled = documents["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == documents["Deployment"]["metadata"]["name"] == "pocketzoo"
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (3, 12)
    assert container["image"] == "ghcr.io/me/zoo:1"
    assert documents["Service"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert [container[probe]["httpGet"]["port"] for probe in container if probe.endswith("Probe")] == ["http"] * 3
    # A Service called pocketzoo would otherwise put POCKETZOO_PORT and its like into the environment.
    assert pod["spec"]["enableServiceLinks"] is False


def test_a_pod_has_time_for_its_slowest_request(folder):
    service = _manifests(folder / "kserve.yaml")["InferenceService"]
    # Knative's webhook refuses the field.
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    command = json.loads(dict(read_instructions((folder / "Containerfile").read_text()))["CMD"])
    graceful = int(command[command.index("--timeout-graceful-shutdown") + 1])
    assert graceful > Settings().timeout_seconds
    for pod in (
        _manifests(folder / "kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"],
        service["spec"]["predictor"],
    ):
        drain = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > drain + graceful


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_containers_have_no_rights_and_known_settings(folder, file):
    document = next(iter(_manifests(folder / file).values()))["spec"]
    pod = document["template"]["spec"] if "template" in document else document["predictor"]
    (container,) = pod["containers"]
    rights = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert rights["runAsNonRoot"] is rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert rights["runAsUser"] > 0
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    read_settings({entry["name"]: entry.get("value", "2") for entry in container["env"]})
    fields = {f"POCKETZOO_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert {entry["name"] for entry in container["env"]} <= fields | {"PROTOCOL"}


@pytest.mark.parametrize("cores", [2, 5])
def test_a_container_gets_what_its_models_and_cores_want(output, tmp_path, cores):
    shipment = plan_shipment([output / "good"], root=output, cores=cores)
    write_shipment(shipment, tmp_path / "out")
    limit, request = shipment.memory.limit >> 20, shipment.memory.request >> 20
    variables = dict(re.findall(r"(\w+)=(\S*)", (tmp_path / "out" / "Containerfile").read_text()))
    settings = read_settings({**variables, "POCKETZOO_SLOTS": f"{cores}"})
    assert settings.loaded_bytes == 2 * (output / "good" / "model.onnx").stat().st_size
    assert settings.decode_bytes == shipment.memory.decoding
    # A WebP image of as many pixels as are accepted.
    room = Room(settings)
    with room.large():
        room.take(20 * settings.max_pixels, "largest")
    for file, kind in (("kubernetes.yaml", "Deployment"), ("kserve.yaml", "InferenceService")):
        spec = _manifests(tmp_path / "out" / file)[kind]["spec"]
        pod = spec["template"]["spec"] if "template" in spec else spec["predictor"]
        (container,) = pod["containers"]
        assert container["resources"] == {
            "requests": {"cpu": f"{cores * 500}m", "memory": f"{request}Mi"},
            "limits": {"cpu": f"{cores}", "memory": f"{limit}Mi"},
        }
        # What the engine cache and BentoML write; there is no other volume, and the root is read-only.
        assert [volume["emptyDir"] for volume in pod["volumes"]] == [{"sizeLimit": "32Mi"}]
        assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    threads = {
        entry["value"] for entry in container["env"] if entry["name"] in ("POCKETZOO_THREADS", "POCKETZOO_SLOTS")
    }
    assert threads == {f"{cores}"}
    read_me = (tmp_path / "out" / "README.md").read_text()
    assert f"docker run --read-only --tmpfs /tmp:size=32m --memory {limit}m --cpus {cores} -p 3000:3000 " in read_me


def test_the_read_me_says_how_to_roll_back(folder):
    read_me = (folder / "README.md").read_text()
    for way in ("kubectl rollout undo deployment/pocketzoo", "canaryTrafficPercent: 0", "put the old file back"):
        assert way in read_me


def test_the_inference_service_fits_the_models_of_kserve(folder, with_keys):
    for path in (folder, with_keys):
        (document,) = yaml.safe_load_all((path / "kserve.yaml").read_text())
        assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
        assert document.keys() <= {"apiVersion", "kind", "metadata", "spec"}
        assert document["spec"].keys() <= KSERVE_SPEC
        predictor = document["spec"]["predictor"]
        own = {name: predictor.pop(name) for name in KSERVE_PREDICTOR.keys() & predictor.keys()}
        assert {name: type(value) for name, value in own.items()} == {name: KSERVE_PREDICTOR[name] for name in own}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"], "spec": predictor}
        kubernetes_validate.validate(pod, "1.37", strict=True)
        (container,) = predictor["containers"]
        assert container["name"] == "kserve-container"
        assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
        assert container["ports"] == [{"name": "http1", "containerPort": 3000, "protocol": "TCP"}]


def test_the_container_file_copies_what_is_there_and_drops_its_rights(folder):
    instructions = read_instructions((folder / "Containerfile").read_text())
    names = [name for name, _ in instructions]
    assert set(names) <= set(KNOWN)
    assert names[0] == "FROM"
    assert names[-1] == "CMD"
    allowed = {line[1:] for line in (folder / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {arguments.split()[0] for name, arguments in instructions if name == "COPY"}
    assert copied == allowed == {"requirements.txt", "zoo", "serve", "output"}
    assert all((folder / path).exists() for path in copied)
    last = dict(instructions)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in {"RUN", "COPY"})
    environment = dict(re.findall(r"(\w+)=(\S*)", last["ENV"]))
    assert read_settings(environment).models == Path("/app/output")
    assert environment["POCKETZOO_ENGINE"] == "onnxruntime"
    assert ("RUN", "pip install --require-hashes -r requirements.txt") in instructions
    for variable in ("BENTOML_HOME", "POCKETZOO_CACHE", "PROMETHEUS_MULTIPROC_DIR"):
        assert environment[variable].startswith("/tmp/")
    assert json.loads(last["CMD"])[:3] == ["bentoml", "serve", "serve.service:Classifier"]
    assert "torch" not in (folder / "Containerfile").read_text() + (folder / "requirements.txt").read_text()


def test_bentoml_reads_its_file_and_takes_the_models(folder):
    from bentoml._internal.bento.build_config import BentoBuildConfig, BentoPathSpec

    config = BentoBuildConfig.from_bento_dir(str(folder))
    assert (config.service, config.name) == ("serve.service:Classifier", "pocketzoo")
    assert config.python.lock_packages is False
    assert (folder / config.python.requirements_txt).is_file()
    specs = BentoPathSpec(config.include, config.exclude, str(folder))
    taken = {path for path in _files(folder) if specs.includes(path)}
    assert taken == {path for path in _files(folder) if path.startswith(("serve/", "zoo/", "output/"))}


def test_keys_go_into_a_secret_and_not_into_the_image(folder, with_keys):
    secret = yaml.safe_load((with_keys / "secret.yaml").read_text())
    text = base64.b64decode(secret["data"]["keys.toml"]).decode()
    assert [entry.name for entry in parse_keys(text, Path("keys.toml"))] == ["phone"]
    assert (with_keys / "secret.yaml").stat().st_mode & 0o077 == 0
    for file, kind in (("kubernetes.yaml", "Deployment"), ("kserve.yaml", "InferenceService")):
        spec = _manifests(with_keys / file)[kind]["spec"]
        pod = spec["template"]["spec"] if "template" in spec else spec["predictor"]
        (container,) = pod["containers"]
        (variable,) = [entry["value"] for entry in container["env"] if entry["name"] == "POCKETZOO_KEYS_FILE"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
        assert variable == f"{mount['mountPath']}/keys.toml"
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert "-f secret.yaml" in (with_keys / "README.md").read_text()
    assert not (folder / "secret.yaml").exists()
    assert "secret" not in (folder / "README.md").read_text() + (folder / "kubernetes.yaml").read_text().lower()


@pytest.mark.parametrize("name", ["null", "true", "on", "y", "e1"])
def test_a_name_that_yaml_would_read_as_something_else_stays_text(output, tmp_path, name):
    out = tmp_path / "out"
    write_shipment(plan_shipment([output / "good"], root=output, name=name, image="1e3"), out)
    for document in _manifests(out / "kubernetes.yaml").values():
        kubernetes_validate.validate(document, "1.37", strict=True)
        assert document["metadata"]["name"] == name
    spec = _manifests(out / "kserve.yaml")["InferenceService"]["spec"]
    assert spec["predictor"]["containers"][0]["image"] == "1e3"
    assert yaml.safe_load((out / "bentofile.yaml").read_text())["name"] == name
