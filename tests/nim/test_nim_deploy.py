"""Manifests pass Kubernetes' own schemas, agree with the image, and name only metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from custom_schemas import SCHEMAS
from dsv4_nim.catalog import all_profiles
from dsv4_nim.deploy.command import KINDS, render
from dsv4_nim.deploy.monitoring import ALERTS, QUEUE_RECORD, dashboard, rules
from dsv4_nim.deploy.objects import manifests
from dsv4_nim.deploy.options import Options
from dsv4_nim.profiles import Profile
from dsv4_nim.resolve import Inputs, resolve
from dsv4_nim.settings import BY_NAME

from dsv4_backend import cli
from dsv4_backend.server.metrics import counter_families, gauge_families

KUBERNETES = "1.37"
PROFILES = all_profiles()
ONE_OF_EACH_SHAPE = list({(each.gpu, each.num_gpus): each for each in PROFILES}.values())
MULTI_NODE = next(each for each in PROFILES if each.num_gpus == 16)
CUSTOM = {"LeaderWorkerSet", "ServiceMonitor", "PrometheusRule", "NIMService"}


def options(profile: Profile = PROFILES[0], **changes: object) -> Options:
    return Options(**({"profile": profile, "image": "registry.example/nim/dsv4:0.1.0"} | changes))  # type: ignore[arg-type]


def by_kind(found: Options) -> dict[str, dict[str, object]]:
    return {str(each["kind"]): each for each in manifests(found)}


def walk(value: object) -> Iterator[dict[str, object]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from walk(each)
    elif isinstance(value, list):
        for each in value:
            yield from walk(each)


@pytest.mark.parametrize("profile", ONE_OF_EACH_SHAPE, ids=lambda profile: f"{profile.num_gpus}x{profile.gpu}")
def test_every_object_passes_kubernetes_schema(profile: Profile) -> None:
    made = yaml.safe_load_all(render("manifests", options(profile, pull_secret="login", key_secret="keys")))
    plain = [each for each in made if each["kind"] not in CUSTOM]
    assert len(plain) >= 4
    for each in plain:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("profile", [*ONE_OF_EACH_SHAPE[-1:], MULTI_NODE], ids=lambda profile: profile.name)
def test_the_pods_of_custom_objects_pass_kubernetes_schema(profile: Profile) -> None:
    templates = [each["template"] for each in walk(manifests(options(profile))) if "template" in each]
    workers = [
        each[key]
        for each in walk(manifests(options(profile)))
        for key in ("leaderTemplate", "workerTemplate")
        if key in each
    ]
    for template in [*templates, *workers]:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "one", **template["metadata"]},
            "spec": template["spec"],
        }  # type: ignore[index,call-overload]
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert templates or len(workers) == 2


@pytest.mark.parametrize("profile", ONE_OF_EACH_SHAPE, ids=lambda profile: f"{profile.num_gpus}x{profile.gpu}")
def test_custom_objects_have_no_field_that_their_types_lack(profile: Profile) -> None:
    one = options(profile, pull_secret="login", key_secret="keys")
    made = [*manifests(one), *([] if one.num_nodes > 1 else manifests(one, as_nim_service=True))]
    custom = [each for each in made if each["kind"] in CUSTOM]
    assert len(custom) >= 3
    for each in custom:
        jsonschema.validate(each, SCHEMAS[str(each["kind"])])


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("LeaderWorkerSet", "replica", 1),
        ("ServiceMonitor", "endpoints", [{"port": "metrics", "interval": "quarter"}]),
        ("NIMService", "userID", "1000"),
        ("PrometheusRule", "groups", [{"name": "one", "rules": [{"alert": "no expression"}]}]),
    ],
)
def test_a_wrong_field_of_a_custom_object_would_be_seen(kind: str, field: str, value: object) -> None:
    profile = MULTI_NODE if kind == "LeaderWorkerSet" else PROFILES[0]
    found = {str(each["kind"]): each for each in manifests(options(profile), as_nim_service=kind == "NIMService")}
    found[kind]["spec"][field] = value  # type: ignore[index]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found[kind], SCHEMAS[kind])


def test_what_the_operator_sets_by_itself_is_known() -> None:
    environment = {
        "NIM_CACHE_PATH": "/model-store", "NIM_SERVER_PORT": "8000", "NIM_HTTP_API_PORT": "8000",
        "NIM_JSONL_LOGGING": "1", "NIM_LOG_LEVEL": "INFO", "NIM_GRPC_API_PORT": "8001", "NIM_TRITON_GRPC_PORT": "8001",
        "NIM_TRITON_METRICS_PORT": "8002", "NIM_LEADER_ROLE": "1", "NIM_MPI_ALLOW_RUN_AS_ROOT": "0",
        "NIM_NUM_COMPUTE_NODES": "1",
    }  # fmt: skip
    assert resolve(Inputs(environment=environment)).warnings == ()


def test_a_schema_violation_would_be_seen() -> None:
    broken = by_kind(options())["Deployment"]
    broken["spec"]["replicas"] = "one"  # type: ignore[index]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_pods_have_no_rights_and_cannot_write_their_root() -> None:
    text = json.dumps(by_kind(options())["Deployment"])
    for claim in ('"runAsNonRoot": true', '"readOnlyRootFilesystem": true', '"drop": ["ALL"]', '"fsGroup": 2000',
                  '"allowPrivilegeEscalation": false'):  # fmt: skip
        assert claim in text


def test_probes_are_the_operators() -> None:
    (container,) = by_kind(options())["Deployment"]["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
    startup, live = container["startupProbe"], container["livenessProbe"]
    assert (startup["httpGet"]["path"], startup["httpGet"]["port"]) == ("/v1/health/ready", "api")
    assert (startup["periodSeconds"], startup["timeoutSeconds"], startup["failureThreshold"]) == (10, 1, 120)
    assert live["httpGet"]["path"] == "/v1/health/live"


def test_a_model_over_two_nodes_is_a_leader_worker_set() -> None:
    found = by_kind(options(MULTI_NODE))
    assert "Deployment" not in found
    template = found["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]  # type: ignore[index]
    assert template["size"] == 2
    names = {each["name"] for each in template["workerTemplate"]["spec"]["containers"][0]["env"]}
    assert {"NIM_NUM_COMPUTE_NODES", "NIM_NODE_RANK", "NIM_LEADER_ROLE"} <= names
    probed = [key for key in ("leaderTemplate", "workerTemplate") if "Probe" in json.dumps(template[key])]
    assert probed == ["leaderTemplate"]


@pytest.mark.parametrize("kind", ["manifests", "nimservice", "compose"])
def test_every_variable_that_is_set_is_in_the_nim_table(kind: str) -> None:
    profile = PROFILES[0] if kind == "nimservice" else MULTI_NODE
    text = render(kind, options(profile, key_secret="keys"))
    assert set(re.findall(r"\bNIM_[A-Z_]+", text)) <= set(BY_NAME)


def test_keys_are_references_to_secrets() -> None:
    rows = [each for each in walk(manifests(options(key_secret="keys"))) if each.get("name") == "HF_TOKEN"]
    assert [each["valueFrom"]["secretKeyRef"]["name"] for each in rows] == ["keys"]  # type: ignore[index]


def known_series() -> set[str]:
    return {*counter_families(), *gauge_families(), QUEUE_RECORD}


@pytest.mark.parametrize("text", [json.dumps(dashboard()), json.dumps(rules())], ids=["dashboard", "rules"])
def test_only_metrics_that_exist_are_named(text: str) -> None:
    named = set(re.findall(r"\bdsv4_[a-z0-9_]+", text))
    assert named - known_series() == set()
    assert len(named) > 5


def test_every_metric_is_on_the_dashboard() -> None:
    text = json.dumps(dashboard())
    histograms = {name.removesuffix("_bucket") for name in counter_families() if name.endswith("_bucket")}
    plain = {name for name in counter_families() if not name.startswith(tuple(histograms))} | set(gauge_families())
    missing = {name for name in plain | {f"{each}_bucket" for each in histograms} if name not in text}
    assert missing == set()


def test_an_alert_says_what_to_do() -> None:
    assert all(alert.action and alert.severity in ("warning", "critical") for alert in ALERTS)


def test_the_autoscaler_follows_the_recorded_queue_time() -> None:
    (metric,) = by_kind(options(queue_target_s=2.5))["HorizontalPodAutoscaler"]["spec"]["metrics"]  # type: ignore[index]
    assert metric["pods"]["metric"]["name"] == rules()["groups"][0]["rules"][0]["record"]  # type: ignore[index]
    assert metric["pods"]["target"]["averageValue"] == "2500m"


def test_compose_runs_the_image_as_the_tests_do() -> None:
    service = yaml.safe_load(render("compose", options()))["services"]["dsv4"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_each_kind(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["k8s", "--write", kind, "--out", str(out)]) == 0
    assert list(yaml.safe_load_all(out.read_text(encoding="utf-8")))


def test_an_unknown_profile_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["k8s", "--profile", "no-such"]) == 2
    assert "no profile has that id or name" in capsys.readouterr().err


def test_a_profile_that_cannot_run_yet_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["k8s", "--profile", MULTI_NODE.id]) == 0
    assert "this version lacks a mesh of 16 ranks" in capsys.readouterr().err


def test_the_operator_is_not_asked_for_what_it_divides_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["k8s", "--write", "nimservice", "--profile", MULTI_NODE.id]) == 2
    assert "Use --write manifests" in capsys.readouterr().err
