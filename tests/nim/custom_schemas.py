"""Schemas of the custom resources that we write, as far as we write them: no field beyond these may appear.

Source: the Go types of LeaderWorkerSet v1 (kubernetes-sigs/lws, commit 024af0845195) and NIMService v1alpha1
        (NVIDIA/k8s-nim-operator, commit 0464933f6130) and the prometheus operator's monitoring/v1, read field by field.
        Their CRDs come with no package of pip, npm or Debian that could check more: npm and pip have models of the
        prometheus operator alone, and the other two are in Go modules, which a set-up without Go cannot fetch. Pods
        and autoscaler metrics inside them are checked against Kubernetes' own schemas.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 1}
USER: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65_535}
DURATION: Schema = {"type": "string", "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"}  # noqa: E501  # fmt: skip
ANY: Schema = {"type": "object"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def record(required: str = "", **fields: Schema) -> Schema:
    """An object of these fields only."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def rows(of: Schema, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "items": of, "minItems": least}


def resource(version: str, kind: str, spec: Schema) -> Schema:
    """A whole object."""
    meta = record("name namespace", name=NAME, namespace=NAME, labels=TEXTS)
    head = {"apiVersion": {"const": version}, "kind": {"const": kind}}
    return record("apiVersion kind metadata spec", **head, metadata=meta, spec=spec)


RULE = record("expr", record=NAME, alert=NAME, expr=NAME, labels=TEXTS, annotations=TEXTS, **{"for": DURATION})
HPA = record("maxReplicas", minReplicas=COUNT, maxReplicas=COUNT, metrics=rows(ANY))
SCHEMAS = {
    "LeaderWorkerSet": resource(
        "leaderworkerset.x-k8s.io/v1",
        "LeaderWorkerSet",
        record(
            "leaderWorkerTemplate",
            replicas=COUNT,
            leaderWorkerTemplate=record(
                "workerTemplate",
                leaderTemplate=ANY,
                workerTemplate=ANY,
                size=COUNT,
                restartPolicy={"enum": ["Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
            ),
        ),
    ),
    "NIMService": resource(
        "apps.nvidia.com/v1alpha1",
        "NIMService",
        record(
            "image authSecret",
            image=record("repository tag", repository=NAME, tag=NAME, pullPolicy=TEXT, pullSecrets=rows(NAME)),
            authSecret=NAME,
            env=rows(record("name", name=NAME, value=TEXT)),
            storage=record(pvc=record(name=NAME, create=FLAG)),
            expose=record(service=record(type=TEXT, port=PORT, grpcPort=PORT, metricsPort=PORT)),
            metrics=record(enabled=FLAG, serviceMonitor=record(interval=DURATION)),
            resources=record(limits=TEXTS, requests=TEXTS),
            scale=record(enabled=FLAG, hpa=HPA),
            replicas=COUNT,
            userID=USER,
            groupID=USER,
        ),
    ),
    "ServiceMonitor": resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        record(
            "selector endpoints",
            selector=record(matchLabels=TEXTS),
            endpoints=rows(record(port=NAME, path=TEXT, interval=DURATION), least=1),
        ),
    ),
    "PrometheusRule": resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        record("groups", groups=rows(record("name rules", name=NAME, rules=rows(RULE, least=1)), least=1)),
    ),
}  # fmt: skip
