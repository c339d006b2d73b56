"""The pod of one node: container, probes, volumes, rights, as NVIDIA's NIM operator sets them."""

from __future__ import annotations

from dsv4_nim.deploy.options import CPU_MEMORY_GB, GROUP, MODEL_STORE, SHARED_MEMORY_GB, USER, Manifest, Options
from dsv4_nim.settings import BY_KEY

PROBE_PERIOD_S, PROBE_TIMEOUT_S, STARTUP_S = 10, 1, 20 * 60
GRACE_S = 90  # the engine drains for 30 s, then ends what is left; Triton and the gateway close after it
PORTS = {
    "api": "server_port",
    "triton-http": "triton_http_port",
    "grpc": "triton_grpc_port",
    "metrics": "triton_metrics_port",
}


def port(name: str) -> int:
    """Return the number of a named port of the container: the default of the NIM table."""
    default = BY_KEY[PORTS[name]].default
    return default if isinstance(default, int) else 0


def pod_template(options: Options) -> Manifest:
    """Return the template of the pod that holds the whole model."""
    return {"metadata": {"labels": dict(options.labels)}, "spec": _spec(options, _container(options, []))}


def node_template(options: Options, rank_field: str, *, is_leader: bool) -> Manifest:
    """Return the template of one node of several; `rank_field` is where a LeaderWorkerSet tells its rank.

    Rule: only the leader answers clients, so only it is probed and selected by the Service.
    """
    rows: list[Manifest] = [
        {"name": "NIM_NUM_COMPUTE_NODES", "value": str(options.num_nodes)},
        {"name": "NIM_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": rank_field}}},
        {"name": "NIM_LEADER_ROLE", "value": "1" if is_leader else "0"},
    ]
    container = _container(options, rows)
    if not is_leader:
        container = {key: value for key, value in container.items() if not key.endswith("Probe")}
    labels = {**options.labels, "role": "leader" if is_leader else "worker"}
    return {"metadata": {"labels": labels}, "spec": _spec(options, container)}


def _spec(options: Options, container: Manifest) -> Manifest:
    memory = f"{SHARED_MEMORY_GB[options.profile.is_cpu]}Gi"
    spec: Manifest = {
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": GROUP, "fsGroup": GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": memory}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "workspace", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "model-store", "persistentVolumeClaim": {"claimName": f"{options.name}-cache"}},
        ],
    }  # fmt: skip
    if options.pull_secret:
        spec["imagePullSecrets"] = [{"name": options.pull_secret}]
    if not options.profile.is_cpu:
        spec["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return spec


def _container(options: Options, more_variables: list[Manifest]) -> Manifest:
    return {
        "name": "dsv4",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [*_environment(options), *more_variables],
        "ports": [{"name": name, "containerPort": port(name), "protocol": "TCP"} for name in PORTS],
        "resources": _resources(options),
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe("ready", STARTUP_S // PROBE_PERIOD_S),
        "readinessProbe": _probe("ready", 3),
        "livenessProbe": _probe("live", 3),
        "volumeMounts": [
            {"name": "dshm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "workspace", "mountPath": "/opt/nim/workspace"},
            {"name": "model-store", "mountPath": MODEL_STORE},
        ],
    }  # fmt: skip


def _environment(options: Options) -> list[Manifest]:
    values = {
        "NIM_CACHE_PATH": MODEL_STORE,
        "NIM_MODEL_PROFILE": options.profile.id,
        "NIM_SERVER_PORT": str(port("api")),
        "NIM_JSONL_LOGGING": "1",
        "NIM_LOG_LEVEL": "INFO",
    }
    rows: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    if options.key_secret:
        for name in ("HF_TOKEN", "NGC_API_KEY"):
            reference = {"name": options.key_secret, "key": name, "optional": True}
            rows.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return rows


def _resources(options: Options) -> Manifest:
    if options.profile.is_cpu:
        limits = {"memory": f"{CPU_MEMORY_GB}Gi"}
        return {"limits": dict(limits), "requests": {**limits, "cpu": "2"}}
    gpus = {"nvidia.com/gpu": str(options.gpus_per_node)}
    return {"limits": dict(gpus), "requests": {**gpus, "cpu": "16", "memory": "128Gi"}}


def _probe(kind: str, failures: int) -> Manifest:
    return {
        "httpGet": {"path": f"/v1/health/{kind}", "port": "api"},
        "periodSeconds": PROBE_PERIOD_S,
        "timeoutSeconds": PROBE_TIMEOUT_S,
        "failureThreshold": failures,
    }
