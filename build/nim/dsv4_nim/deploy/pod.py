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


def pod_template(options: Options, *, node_rank: str = "") -> Manifest:
    """Return the template of a pod; `node_rank` names the field that a LeaderWorkerSet tells the rank in."""
    return {"metadata": {"labels": dict(options.labels)}, "spec": _spec(options, node_rank)}


def _spec(options: Options, node_rank: str) -> Manifest:
    memory = f"{SHARED_MEMORY_GB[options.profile.is_cpu]}Gi"
    spec: Manifest = {
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": GROUP, "fsGroup": GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(options, node_rank)],
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


def _container(options: Options, node_rank: str) -> Manifest:
    return {
        "name": "dsv4",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(options, node_rank),
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


def _environment(options: Options, node_rank: str) -> list[Manifest]:
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
    if node_rank:
        rows.append({"name": "NIM_NUM_COMPUTE_NODES", "value": str(options.num_nodes)})
        rows.append({"name": "NIM_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": node_rank}}})
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
