"""The shipped configuration files are valid, strict and alike."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.app import gpus_per_trainer
from deployments.proxy import ENVIRONMENT
from deployments.settings import Settings
from deployments.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[1]

# What a GPU cluster needs otherwise than a laptop, and nothing else.
DIFFERENT_ON_KUBERNETES = {
    "proxy_location",
    "http_options.host",
    "args.storage_url",
    "args.data_roots",
    "args.allow_no_auth",
    "args.tokens_file",
    "args.trainer.gpus_per_trainer",
    "args.trainer.cpus_per_trainer",
    "args.trainer.min_replicas",
    "args.predictor.cpus_per_predictor",
}


def flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for name, item in value.items() for k, v in flat(item, f"{prefix}.{name}".lstrip(".")).items()
    }


def local_config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "serve_config.yaml").read_text())


def kubernetes_config() -> dict[str, Any]:
    service = yaml.safe_load((ROOT / "k8s/rayservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    return yaml.safe_load(service["spec"]["serveConfigV2"])


@pytest.mark.parametrize("config", [local_config, kubernetes_config])
def test_configuration_is_accepted_by_serve_and_by_the_settings(config) -> None:
    ServeDeploySchema.model_validate(config())
    [application] = config()["applications"]
    Settings.model_validate(application["args"])


def test_kubernetes_differs_from_local_in_named_places_alone() -> None:
    def settled(config: dict[str, Any]) -> dict[str, object]:
        [application] = config.pop("applications")
        return flat(config | application)

    local, kubernetes = settled(local_config()), settled(kubernetes_config())
    different = {k for k in local.keys() | kubernetes.keys() if local.get(k, ...) != kubernetes.get(k, ...)}
    assert different == DIFFERENT_ON_KUBERNETES


def test_pods_outlive_the_longest_training() -> None:
    spec = yaml.safe_load((ROOT / "k8s/rayservice.yaml").read_text())["spec"]
    longest = Settings(allow_no_auth=True).trainer.job_timeout_s + 60
    assert spec["rayClusterDeletionDelaySeconds"] >= longest
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= longest


@pytest.mark.parametrize(
    "wrong", [{"trainer": {"max_replica": 2}}, {"storage": "x"}, {"trainer": {"cpus_per_trainer": 0}}]
)
def test_misspelt_or_impossible_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"allow_no_auth": True} | wrong)


@pytest.mark.parametrize(
    ("wanted", "in_cluster", "expected"), [("auto", 0, 0), ("auto", 8, 1), (2, 0, 2), (0.5, 1, 0.5)]
)
def test_auto_takes_a_gpu_where_there_is_one(wanted, in_cluster: float, expected: float) -> None:
    settings = Settings.model_validate({"allow_no_auth": True, "trainer": {"gpus_per_trainer": wanted}})
    assert gpus_per_trainer(settings, in_cluster) == expected


def test_versions_that_the_files_name_agree() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    spec = yaml.safe_load((ROOT / "k8s/rayservice.yaml").read_text())["spec"]
    assert spec["rayClusterConfig"]["rayVersion"] == pins["ray"]
    assert pins["torch"] == "2.13.0"
    assert not [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "/" in line]


def test_image_sets_what_the_proxy_of_ray_needs() -> None:
    text = (ROOT / "k8s/Dockerfile").read_text()
    assert [f"{name}={value}" for name, value in ENVIRONMENT.items() if f"{name}={value}" not in text] == []


ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "k8s/alerts.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
SERIES = re.compile(r"ray_(\w+?)(?:_bucket)?(?:{([^}]*)})?(?=[\[)\s])")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_ask_for_metrics_and_labels_that_exist_and_for_rates_of_counters(rule: dict[str, Any]) -> None:
    found = SERIES.findall(rule["expr"])
    assert found
    for name, selectors in found:
        metric = METRICS[name]
        assert {*re.findall(r"(\w+)[=!]", selectors)} <= {*metric.labels, "le"}
        if metric.kind != "gauge":
            assert re.search(rf"(rate|increase)\(ray_{name}\w*(?:{{[^}}]*}})?\[\d+m\]\)", rule["expr"])
    for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
        assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"])


def test_scraping_keeps_our_label_endpoint() -> None:
    monitor = yaml.safe_load((ROOT / "k8s/podmonitor.yaml").read_text())["spec"]
    assert [endpoint["honorLabels"] for endpoint in monitor["podMetricsEndpoints"]] == [True]


def test_alerts_of_seed_001_are_there() -> None:
    names = {rule["alert"] for rule in ALERTS}
    assert {"HighCriticalErrorRate", "HighTrainingFailureRate", "APIErrorSpike", "StorageErrors"} <= names
