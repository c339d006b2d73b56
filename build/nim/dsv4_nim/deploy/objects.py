"""The objects of one deployment: workload, Service, volume, disruption budget, scaling, monitoring."""

from __future__ import annotations

from dsv4_nim.deploy.monitoring import QUEUE_RECORD, rules
from dsv4_nim.deploy.options import GROUP, MODEL_STORE, USER, Manifest, Options
from dsv4_nim.deploy.pod import PORTS, node_template, pod_template, port
from dsv4_nim.errors import SettingError

RANK_FIELD = "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']"


def manifests(options: Options, *, as_nim_service: bool = False) -> list[Manifest]:
    """Return every object in the order in which they are applied."""
    if as_nim_service:
        return [_claim(options), _nim_service(options), _prometheus_rule(options)]
    return [
        _claim(options),
        _leader_worker_set(options) if options.num_nodes > 1 else _deployment(options),
        _service(options),
        _disruption_budget(options),
        _autoscaler(options),
        _service_monitor(options),
        _prometheus_rule(options),
    ]


def _claim(options: Options) -> Manifest:
    spec: Manifest = {
        "accessModes": ["ReadWriteMany" if options.num_nodes > 1 else "ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{options.storage_gb}Gi"}},
    }
    if options.storage_class:
        spec["storageClassName"] = options.storage_class
    meta = options.meta(f"{options.name}-cache")
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def _deployment(options: Options) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": options.meta(),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": dict(options.labels)},
            # A GPU is seldom free beside the one that is used, and the volume may be of one node: old pods go first.
            "strategy": {"type": "Recreate"},
            "template": pod_template(options),
        },
    }


def _leader_worker_set(options: Options) -> Manifest:
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": options.meta(),
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": options.num_nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": node_template(options, RANK_FIELD, is_leader=True),
                "workerTemplate": node_template(options, RANK_FIELD, is_leader=False),
            },
        },
    }


def _service(options: Options) -> Manifest:
    selector = {**options.labels, **({"role": "leader"} if options.num_nodes > 1 else {})}
    ports = [{"name": name, "port": port(name), "targetPort": name, "protocol": "TCP"} for name in PORTS]
    spec = {"type": "ClusterIP", "selector": selector, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": options.meta(), "spec": spec}


def _disruption_budget(options: Options) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": options.meta(),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(options.labels)}},
    }


def _autoscaler(options: Options) -> Manifest:
    """Scale on the time that requests wait, which grows before anything else does; see the recording rule."""
    is_set = options.num_nodes > 1
    metric = {
        "type": "Pods",
        "pods": {
            "metric": {"name": QUEUE_RECORD},
            "target": {"type": "AverageValue", "averageValue": f"{int(options.queue_target_s * 1000)}m"},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": options.meta(),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "leaderworkerset.x-k8s.io/v1" if is_set else "apps/v1",
                "kind": "LeaderWorkerSet" if is_set else "Deployment",
                "name": options.name,
            },
            "minReplicas": 1,
            "maxReplicas": options.max_replicas,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},  # a model takes minutes to load
        },
    }


def _service_monitor(options: Options) -> Manifest:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": options.meta(),
        "spec": {
            "selector": {"matchLabels": dict(options.labels)},
            "endpoints": [{"port": "metrics", "path": "/metrics", "interval": "15s"}],
        },
    }


def _prometheus_rule(options: Options) -> Manifest:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": options.meta(),
        "spec": rules(),
    }


def _nim_service(options: Options) -> Manifest:
    """The same deployment for NVIDIA's NIM operator, which brings probes, rights, /dev/shm and Service by itself.

    Raises: SettingError for a model over several nodes: the operator divides one by pipeline stages only.
    """
    if options.num_nodes > 1:
        raise SettingError(
            f"{options.profile.name} takes {options.num_nodes} nodes, which NVIDIA's operator divides by pipeline"
            " stages, and this runtime has none. Use --write manifests, which gives a LeaderWorkerSet."
        )
    repository, _, tag = options.image.rpartition(":")
    spec: Manifest = {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent",
                  "pullSecrets": [options.pull_secret] if options.pull_secret else []},
        "authSecret": options.key_secret or "ngc-api-secret",
        "userID": USER,
        "groupID": GROUP,
        "replicas": 1,
        "env": [{"name": "NIM_MODEL_PROFILE", "value": options.profile.id}],
        "storage": {"pvc": {"name": f"{options.name}-cache", "create": False}},
        "expose": {"service": {"type": "ClusterIP", "port": port("api"), "grpcPort": port("grpc")}},
        "metrics": {"enabled": True, "serviceMonitor": {"interval": "15s"}},
        "resources": {"limits": {} if options.profile.is_cpu else {"nvidia.com/gpu": str(options.gpus_per_node)}},
        "scale": {"enabled": True, "hpa": {"minReplicas": 1, "maxReplicas": options.max_replicas,
                                           "metrics": [_queue_metric(options)]}},
    }  # fmt: skip
    return {"apiVersion": "apps.nvidia.com/v1alpha1", "kind": "NIMService", "metadata": options.meta(), "spec": spec}


def _queue_metric(options: Options) -> Manifest:
    spec = _autoscaler(options)["spec"]
    return spec["metrics"][0]  # type: ignore[index,no-any-return]


def compose(options: Options) -> Manifest:
    """Return a compose file of one container with the same rights and ports."""
    service: Manifest = {
        "image": options.image,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp:rw,noexec,nosuid,nodev,size=64m,uid=1000"],
        "shm_size": "256m" if options.profile.is_cpu else "16g",
        "stop_grace_period": "90s",
        "environment": {
            "NIM_MODEL_PROFILE": options.profile.id,
            "NIM_CACHE_PATH": MODEL_STORE,
            "NIM_LOG_LEVEL": "INFO",
            "HF_TOKEN": "${HF_TOKEN:-}",
        },
        "ports": [f"{port(name)}:{port(name)}" for name in PORTS],
        "volumes": [f"cache:{MODEL_STORE}"],
        "healthcheck": {"test": ["CMD", "nim-healthcheck"], "interval": "10s", "timeout": "5s", "start_period": "20m"},
    }
    if not options.profile.is_cpu:
        device = {"driver": "nvidia", "count": options.profile.num_gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return {"services": {options.name: service}, "volumes": {"cache": {}}}
