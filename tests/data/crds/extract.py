"""Make `kuberay.json.gz` from KubeRay's CRDs: the v1 schemas of RayJob and RayService without descriptions.

    python tests/data/crds/extract.py KUBERAY_CHECKOUT v1.7.0

Source: github.com/ray-project/kuberay, helm-chart/kuberay-operator/crds, Apache License 2.0. Every object schema that names
its properties refuses others, as `kubectl` does; equal parts are written once, under `$defs`.
"""

import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KINDS = {"RayJob": "rayjobs", "RayService": "rayservices"}
LEFT_OUT = {"description", "format"}  # formats such as int32 are JSON Schema's integers


def plain(schema: Any) -> Any:
    """Return the schema as JSON Schema has it: closed objects, no text, none of Kubernetes' own keys."""
    if isinstance(schema, list):
        return [plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {
        key: {name: plain(part) for name, part in value.items()} if key == "properties" else plain(value)
        for key, value in schema.items()
        if key not in LEFT_OUT and not key.startswith("x-kubernetes-")
    }
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def digest(schema: Any) -> str:
    """Return a short name for a schema's content."""
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:12]


def shared(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return one document in which parts that occur twice are references."""
    seen: Counter[str] = Counter()

    def count(schema: Any) -> None:
        if isinstance(schema, dict) and isinstance(schema.get("type"), str) and len(json.dumps(schema)) > 120:
            seen[digest(schema)] += 1
        for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            count(part)

    definitions: dict[str, Any] = {}

    def refer(schema: Any) -> Any:
        if isinstance(schema, list):
            return [refer(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        name = digest(schema)
        if not isinstance(schema.get("type"), str) or seen[name] < 2:  # a map of properties may have one called type
            return {key: refer(value) for key, value in schema.items()}
        if name not in definitions:
            definitions[name] = {key: refer(value) for key, value in schema.items()}
        return {"$ref": f"#/$defs/{name}"}

    for schema in schemas.values():
        count(schema)
    return {"kinds": {kind: refer(schema) for kind, schema in schemas.items()}, "$defs": definitions}


def main(checkout: str, tag: str) -> None:
    """Read the CRDs of `tag` from a git checkout and write the schema beside this file."""
    schemas = {}
    for kind, plural in KINDS.items():
        path = f"{tag}:helm-chart/kuberay-operator/crds/ray.io_{plural}.yaml"
        text = subprocess.run(["git", "-C", checkout, "show", path], check=True, capture_output=True, text=True).stdout
        versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
        (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
        schema["properties"].pop("status")
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[kind] = plain(schema)
    document = {
        "source": f"github.com/ray-project/kuberay {tag}, helm-chart/kuberay-operator/crds",
        "license": "Apache License 2.0, Copyright The KubeRay Authors; changed: see extract.py",
        **shared(schemas),
    }
    target = Path(__file__).with_name("kuberay.json.gz")
    target.write_bytes(gzip.compress(json.dumps(document, sort_keys=True).encode(), 9, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
