"""What Ray checks of cluster.yaml, what it does not, and KubeRay's manifests against KubeRay's own schema."""

import gzip
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from clear_ray.config.run import RunConfig

ROOT = Path(__file__).parents[3]
CLUSTERS = ["cluster.yaml", "deploy/gcp.yaml"]
MANIFESTS = ["deploy/kuberay/rayjob.yaml", "deploy/kuberay/rayservice.yaml"]
RUNS = sorted(path.name for path in (ROOT / "jobs/configs").glob("*.yaml"))
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20,}|\bBearer\s|(?<![\w/.-])(?=[A-Za-z+]*[0-9])[A-Za-z0-9+]{40,}={0,2}(?![\w/.-])"
    r"|(?i:auth_token|password|secret_key|api_key)\s*[:=]\s*[\"']?(?!~|/)[A-Za-z0-9]{8,}"
)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@cache
def prepared(name: str) -> dict[str, Any]:
    config: dict[str, Any] = prepare_config(read(name))
    validate_config(config)
    return config


def pinned(library: str) -> str:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    return pins[library]


def start_options(command: str) -> dict[str, str]:
    found = re.findall(r"(--[a-z-]+)(?:=(\S+))?", command.partition("ray start")[2])
    return dict(found)


def spec_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]
    return spec


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec_of(manifest)["headGroupSpec"], *spec_of(manifest)["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def gpu_nodes(name: str) -> list[tuple[int, int]]:
    """Return (nodes at most, GPUs of one) of every worker type; spot and on demand of one size are one type."""
    if name in MANIFESTS:
        groups = spec_of(read(name))["workerGroupSpecs"]
        gpus = [int(g["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for g in groups]
        return [(group["maxReplicas"], count) for group, count in zip(groups, gpus, strict=True)]
    types = prepared(name)["available_node_types"]
    return [
        (node["max_workers"], node["resources"]["GPU"])
        for kind, node in types.items()
        if kind.startswith("gpu_") and not kind.endswith("_on_demand")
    ]


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster(name: str) -> None:
    config = prepared(name)
    assert config["head_node_type"] == "head"
    assert config["idle_timeout_minutes"] <= 10


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_refuses_a_mistyped_cluster(name: str) -> None:
    config = read(name)
    config["idle_timeout_minuets"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_has_no_gpu_and_workers_begin_at_none(name: str) -> None:
    types = prepared(name)["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert types["head"]["max_workers"] == 0
    workers = {kind: node for kind, node in types.items() if kind != "head"}
    assert all(node["min_workers"] == 0 < node["max_workers"] and node["resources"]["GPU"] for node in workers.values())
    sizes = sorted(gpus for _, gpus in gpu_nodes(name))
    assert len(sizes) == 2
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_type_can_reach_its_own_limit(name: str) -> None:
    assert prepared(name)["max_workers"] == sum(most for most, _ in gpu_nodes(name))


@pytest.mark.parametrize("name", CLUSTERS)
def test_commands_use_options_that_ray_has_and_ports_that_do_not_meet(name: str) -> None:
    known = {option for parameter in ray_start.params for option in parameter.opts}
    for role in ("head", "worker"):
        options = start_options(prepared(name)[f"{role}_start_ray_commands"][-1])
        assert options.keys() <= known
        ports = [
            int(value) for option, value in options.items() if option.endswith("port") and "-worker-" not in option
        ]
        lowest, highest = int(options["--min-worker-port"]), int(options["--max-worker-port"])
        assert len(set(ports)) == len(ports) >= 6
        assert not [port for port in ports if lowest <= port <= highest or not 1024 <= port < 65536]
        assert highest - lowest >= 500  # one port for each worker process


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_dashboard_is_on_loopback_and_the_token_everywhere(name: str) -> None:
    config = prepared(name)
    head = start_options(config["head_start_ray_commands"][-1])
    assert head["--dashboard-host"] == "127.0.0.1"
    assert head["--dashboard-port"] == "8265"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105  # a path
    assert "IpPermissions" not in config["provider"].get("security_group", {})


@pytest.mark.parametrize("name", CLUSTERS)
def test_versions_are_pinned_to_those_of_the_package(name: str) -> None:
    config = prepared(name)
    for role in ("head", "worker"):
        assert config["docker"][f"{role}_image"].startswith(f"rayproject/ray:{pinned('ray')}-py311-")
    installs = [command for command in config["head_setup_commands"] if "pip install" in command]
    assert len(installs) == 2
    assert all("--constraint" in command or re.search(r"==\d", command) for command in installs)
    libraries = dict(found for command in installs for found in re.findall(r"'([\w-]+)==([\d.]+)'", command))
    assert {name: pinned(name) for name in libraries if name == "boto3"}.items() <= libraries.items()


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_mounted_is_there_and_enough_to_build_the_package(name: str) -> None:
    mounts = {source for target, source in prepared(name)["file_mounts"].items() if "/source/" in target}
    assert not [source for source in mounts if not (ROOT / source).exists()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert mounts >= {"pyproject.toml", "constraints.txt", "clear_ray", project["readme"], *project["license-files"]}
    dockerfile = (ROOT / "deploy/kuberay/Dockerfile").read_text()
    assert not [source for source in mounts if source not in dockerfile]


@pytest.mark.parametrize("name", CLUSTERS)
def test_models_are_kept_outside_the_container(name: str) -> None:
    config = prepared(name)
    options = " ".join(config["docker"]["run_options"])
    (host, inside) = re.search(r"--volume (\S+):(\S+)", options).groups()  # type: ignore[union-attr]
    assert f"--env HF_HOME={inside}" in options
    assert any(host in command for command in config["initialization_commands"])


@pytest.mark.parametrize("cluster", [*CLUSTERS, *MANIFESTS])
@pytest.mark.parametrize("run", RUNS)
def test_the_engines_of_every_run_fit_the_cluster(cluster: str, run: str) -> None:
    settings = read(f"jobs/configs/{run}")
    if "run_dir" not in settings:
        return  # not a batch
    config = RunConfig.parse(settings, where=run)
    wanted = config.engine.num_gpus
    if wanted:
        places = sum(most * int(gpus // wanted) for most, gpus in gpu_nodes(cluster))
        assert places >= config.most_workers
        assert "://" in config.run_dir  # a folder of one node is not another node's


def test_gcp_prefers_spot_and_has_the_same_on_demand() -> None:
    types = prepared("deploy/gcp.yaml")["available_node_types"]
    for size in ("gpu_small", "gpu_large"):
        spot, fixed = types[size], types[f"{size}_on_demand"]
        assert spot["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        assert "provisioningModel" not in fixed["node_config"]["scheduling"]
        assert spot["priority"] > fixed["priority"]
        assert spot["resources"] == fixed["resources"]  # other resources would outweigh the priority
        assert spot["node_config"]["machineType"] == fixed["node_config"]["machineType"]


def test_aws_asks_the_spot_market_under_the_provider_that_falls_back() -> None:
    config = prepared("cluster.yaml")
    assert config["provider"]["module"] == "clear_ray.cluster.spot_first.SpotFirstProvider"
    nodes = {kind: node["node_config"] for kind, node in config["available_node_types"].items()}
    assert "InstanceMarketOptions" not in nodes.pop("head")
    assert all(node["InstanceMarketOptions"] == {"MarketType": "spot"} for node in nodes.values())
    roles = {node["IamInstanceProfile"]["Name"] for node in nodes.values()}
    policies = {name: json.loads((ROOT / f"deploy/aws/{name}-policy.json").read_text()) for name in ("head", "worker")}
    assert roles == {"clear-ray-worker"}
    granted = {action for part in policies["worker"]["Statement"] for action in [*part["Action"]]}
    assert granted
    assert all(action.startswith("s3:") and "*" not in action for action in granted)
    passed = [part for part in policies["head"]["Statement"] if part["Action"] == "iam:PassRole"]
    assert [part["Resource"].rpartition("/")[2] for part in passed] == ["clear-ray-worker"]


@pytest.mark.parametrize(
    "name", [*CLUSTERS, *MANIFESTS, "deploy/kuberay/shared.yaml", *(f"jobs/configs/{run}" for run in RUNS)]
)
def test_no_file_holds_a_secret(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert SECRET.findall(text) == []


@pytest.mark.parametrize(
    "line", ["RAY_AUTH_TOKEN: 0f3a9bc2d1", "AKIAABCDEFGHIJKLMNOP", "password = 'hunter2hunter2'", "a1" * 22, "Bearer x"]
)
def test_a_secret_would_be_found(line: str) -> None:
    assert SECRET.search(line)


def kuberay_validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads(gzip.decompress((ROOT / "tests/data/crds/kuberay.json.gz").read_bytes()))
    return jsonschema.Draft202012Validator({**schema["kinds"][kind], "$defs": schema["$defs"]})


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_accepts_the_manifest(name: str) -> None:
    manifest = read(name)
    errors = [f"{e.json_path}: {e.message}" for e in kuberay_validator(manifest["kind"]).iter_errors(manifest)]
    assert errors == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on"),
        (("spec", "backOffLimit"), 3),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagee"), "x"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "16"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "tolerations"), {}),
    ],
)
def test_kuberay_refuses_a_mistyped_manifest(path: tuple[Any, ...], value: Any) -> None:
    manifest = json.loads(json.dumps(read("deploy/kuberay/rayjob.yaml")))  # aliases become copies
    place = manifest
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert list(kuberay_validator("RayJob").iter_errors(manifest))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_keep_what_kuberay_checks_in_code(name: str) -> None:
    spec = spec_of(read(name))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == pinned("ray")
    assert spec["enableInTreeAutoscaling"] is True
    known = {option for parameter in ray_start.params for option in parameter.opts}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert {f"--{option}" for option in group["rayStartParams"]} <= known
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"  # autoscaler v2
    assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert 0 == group["minReplicas"] == group["replicas"] < group["maxReplicas"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_least_rights_and_exact_resources(name: str) -> None:
    for container in containers(read(name)):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert re.fullmatch(r"REGISTRY/clear-ray:\d+\.\d+\.\d+", container["image"])
    assert f"FROM rayproject/ray:{pinned('ray')}-py311-gpu" in (ROOT / "deploy/kuberay/Dockerfile").read_text()


def test_the_job_runs_a_configuration_of_this_repository() -> None:
    words = read("deploy/kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:2] == ["clear-ray", "run"]
    config = words[words.index("--config") + 1]
    overrides = tuple(words[k + 1] for k, word in enumerate(words) if word == "--set")
    loaded = RunConfig.load(ROOT / "jobs/configs" / Path(config).name, overrides)
    assert loaded.run_dir.startswith("s3://")


def test_serve_accepts_the_service() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(
        yaml.safe_load(read("deploy/kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    )
    (application,) = schema.applications
    assert application.import_path == "clear_ray.serve:build_app"


def test_the_guide_names_commands_options_and_files_that_exist() -> None:
    from ray.scripts.scripts import cli

    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    commands = [line.partition("#")[0].partition(" -- ")[0].split() for line in blocks.splitlines()]
    checked = []
    for _, *words in (words for words in commands if words[:1] == ["ray"]):
        command: Any = cli
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, command.name
        checked.append(command.name)
    assert {"up", "down", "dashboard", "submit", "stop"} <= set(checked)
    named = re.findall(r"(?:deploy|jobs/configs|tests/unit|clear_ray)/[\w./-]+\.\w+|configs/\w+\.yaml", text)
    assert not [name for name in named if not ((ROOT / name).exists() or (ROOT / "jobs" / name).exists())]
