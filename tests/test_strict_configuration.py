"""A mistake in serve_config.yaml stops the start and is named, wherever it is."""

import copy
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from deployments.configuration import ConfigFileError, Configuration, problems_of, read_configuration
from deployments.doctor import Check, check_cpus, examine
from deployments.foreground import StartError, stay
from deployments.settings import TOKENS_VARIABLE, Settings
from stillhouse.command_line.main import command

ROOT = Path(__file__).parents[1]
SHIPPED = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
KUBERNETES = yaml.safe_load(
    yaml.safe_load((ROOT / "k8s/rayservice.yaml").read_text())["spec"]["serveConfigV2"]
)
DEPLOYMENT = {
    "name": "Trainer",
    "max_ongoing_requests": 1,
    "ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {}}},
    "autoscaling_config": {"min_replicas": 1, "policy": {"policy_function": "core.paging:paginate"}},
    "logging_config": {"log_level": "INFO"},
}


def complete() -> dict[str, Any]:
    """The shipped configuration with everything filled in that it leaves out."""
    config = copy.deepcopy(SHIPPED)
    config["grpc_options"] = {"port": 9000}
    [application] = config["applications"]
    application |= {"deployments": [DEPLOYMENT], "runtime_env": {"env_vars": {}}, "logging_config": {}}
    arguments = application["args"]
    arguments["trainer"]["runtime_env"] = {"env_vars": {}}
    arguments |= {"limits": {"rows": 5}, "ingress": {"replicas": 1}, "storage_options": {"key": "x"}}
    return copy.deepcopy(config)


def keys_of(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of every key at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    here = [(*path, key) for key, _ in items if isinstance(key, str)]
    return here + [found for key, item in items for found in keys_of(item, (*path, key))]


EVERYWHERE = "0.0.0.0"  # noqa: S104  # read, not bound
FREE = {"key"}  # names that only the storage's own library knows
KEYS = [path for path in keys_of(complete()) if path[-1] not in FREE]


def written(path: tuple[object, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


@pytest.fixture(autouse=True)
def no_tokens_in_the_environment(monkeypatch):
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a configuration whose storage, data and port are the test's own."""

    def file(change=lambda _: None) -> Path:
        config = copy.deepcopy(SHIPPED)
        config["http_options"]["port"] = 0
        arguments = config["applications"][0]["args"]
        arguments |= {"storage_url": f"file://{tmp_path}/storage", "data_roots": [f"{tmp_path}/data"]}
        change(config)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return file


def arguments_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["applications"][0]["args"]


@pytest.mark.parametrize(
    "config", [SHIPPED, KUBERNETES, complete()], ids=["shipped", "kubernetes", "complete"]
)
def test_correct_configuration_has_no_problems(config):
    assert problems_of(config) == []


@pytest.mark.parametrize("path", KEYS, ids=written)
def test_key_misspelt_anywhere_is_named_with_the_right_one(path):
    config = complete()
    holder: Any = config
    for step in path[:-1]:
        holder = holder[step]
    *before, name = path
    misspelt = f"{name[:-1]}_{name[-1]}"
    holder[misspelt] = holder.pop(name)
    assert (written((*before, misspelt)), name) in {
        (problem.path, problem.nearest) for problem in problems_of(config)
    }


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("proxy_location",), "Nowhere"),
        (("http_options", "port"), "eight"),
        (("http_options",), [1]),
        (("applications",), {}),
        (("applications", 0, "route_prefix"), 7),
        (("applications", 0, "args"), None),
        (("applications", 0, "args", "allow_no_auth"), "yes"),
        (("applications", 0, "args", "data_roots"), "~/data"),
        (("applications", 0, "args", "registry", "ttl_seconds"), "900"),
        (("applications", 0, "args", "trainer", "min_replicas"), -1),
        (("applications", 0, "args", "trainer", "cpus_per_trainer"), True),
        (("applications", 0, "deployments", 0, "max_ongoing_requests"), "all"),
        (("applications", 0, "deployments", 0, "autoscaling_config", "min_replicas"), "few"),
    ],
    ids=str,
)
def test_value_of_a_wrong_type_is_named(path, wrong):
    config = complete()
    holder: Any = config
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = wrong
    assert written(path) in {problem.path for problem in problems_of(config)}


def test_arguments_of_other_applications_are_theirs():
    config = copy.deepcopy(SHIPPED)
    config["applications"].append(
        {"name": "other", "route_prefix": "/other", "import_path": "other:app", "args": {"anything": 1}}
    )
    assert problems_of(config) == []


@pytest.mark.parametrize("content", ["a: [1", "- 1", "", "\x00"])
def test_what_is_no_configuration_is_said(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigFileError, match="must"):
        read_configuration(path)


def test_missing_file_is_said(tmp_path):
    with pytest.raises(ConfigFileError, match=r"no file nothing\.yaml"):
        read_configuration(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("host", "root_path", "prefix", "url"),
    [
        ("127.0.0.1", "", "/", "http://127.0.0.1:8000"),
        (EVERYWHERE, "", "/", "http://127.0.0.1:8000"),
        ("example.org", "/models", "/tables", "http://example.org:8000/models/tables"),
    ],
)
def test_address_follows_from_the_configuration(file, host, root_path, prefix, url):
    def change(config):
        config["http_options"] |= {"host": host, "port": 8000, "root_path": root_path}
        config["applications"][0]["route_prefix"] = prefix

    configuration = read_configuration(file(change))
    assert isinstance(configuration, Configuration)
    assert configuration.url == url


# ── up and doctor ───────────────────────────────────────────────────────────────────────────────────────────


def misspell(config):
    arguments_of(config)["trainer"]["max_replica"] = 2


def test_up_stops_at_a_misspelt_key(file):
    path = str(file(misspell))
    done = CliRunner().invoke(command, ["up", "--config", path])
    line = "applications[0].args.trainer.max_replica: there is no such key; did you mean max_replicas?"
    assert (done.exit_code, done.stdout) == (3, "")
    assert line in done.stderr
    as_json = CliRunner().invoke(command, ["up", "--config", path, "--json"])
    assert (as_json.exit_code, json.loads(as_json.stdout)["error"]["problems"]) == (3, [line])


def held(checks: list[Check]) -> dict[str, bool]:
    return {check.name: check.holds for check in checks}


def test_doctor_finds_all_well(file):
    names = ("Python", "Ray", "PyTorch", "configuration", "port", "storage", "data root", "tokens", "CPUs")
    checks = examine(file())
    assert held(checks) == dict.fromkeys(names, True), checks
    assert not any(check.advice for check in checks)


def settings_for(**cpus) -> Settings:
    trainer = {"cpus_per_trainer": cpus.get("trainer", 1), "min_replicas": cpus.get("trainers", 1)}
    return Settings(
        allow_no_auth=True, trainer=trainer, ingress={"cpus_per_ingress": cpus.get("ingress", 0.25)}
    )


@pytest.mark.parametrize(
    ("settings", "available", "holds"),
    [
        (settings_for(), 2, True),
        (settings_for(), 1, False),
        (settings_for(trainers=0), 1, False),
        (settings_for(trainers=0), 2, True),
        (settings_for(trainers=3), 3.8, False),
        (settings_for(trainer=64), 16, False),
        (settings_for(ingress=0.5), 2, False),
    ],
)
def test_doctor_finds_what_cannot_fit_into_the_cpus(settings, available, holds):
    check = check_cpus(settings, available)
    assert check.holds is holds
    assert bool(check.advice) is not holds
    assert f"of {available:g} are needed" in check.found


def test_doctor_leaves_storage_as_it_was(file, tmp_path):
    examine(file())
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


def test_doctor_leaves_the_file_of_another_doctor(file, tmp_path):
    other = tmp_path / "storage" / "doctor" / "other"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"readable")
    assert held(examine(file()))["storage"]
    assert [path for path in other.parent.iterdir() if path.is_file()] == [other]


def test_doctor_exits_with_0_only_when_all_holds(file):
    well = CliRunner().invoke(command, ["doctor", "--config", str(file()), "--json"])
    ill = CliRunner().invoke(command, ["doctor", "--config", str(file(misspell)), "--json"])
    assert (well.exit_code, ill.exit_code) == (0, 1)
    assert all(check["holds"] for check in json.loads(well.stdout)["data"])
    [found] = [check["found"] for check in json.loads(ill.stdout)["data"] if not check["holds"]]
    assert "max_replicas" in found


def test_doctor_shows_a_table_with_advice(file):
    shown = CliRunner().invoke(command, ["doctor", "--config", str(file(misspell))]).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["ok", "ok", "ok", "FAILS"]
    assert "Correct config.yaml" in shown


def test_doctor_finds_a_port_that_is_taken_and_up_does_not_start_there(file):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        config = str(file(lambda config: config["http_options"].update(port=taken)))
        checks = examine(Path(config))
        started = CliRunner().invoke(command, ["up", "--config", config])
    assert [name for name, holds in held(checks).items() if not holds] == ["port"]
    assert (started.exit_code, f"127.0.0.1:{taken} cannot be had" in started.stderr) == (6, True)


@pytest.fixture
def own_handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    sys.exit()


def failed_in_ray() -> None:
    raise ConnectionError("no Ray there")


@pytest.mark.parametrize("end", [interrupted, lambda: sys.exit(signal.SIGTERM)], ids=["SIGINT", "SIGTERM"])
def test_up_ends_well_when_it_is_told_to(own_handler, end):
    assert stay(end) is None


@pytest.mark.parametrize(
    ("end", "why"), [(sys.exit, "ended by itself.*logs"), (failed_in_ray, "no Ray there.*logs")]
)
def test_up_fails_when_serve_or_ray_did(own_handler, end, why):
    with pytest.raises(StartError, match=why):
        stay(end)


def blocked(tmp_path: Path) -> str:
    """A path that no process can write below, root's neither: its parent is a file."""
    (tmp_path / "file").write_text("")
    return f"{tmp_path}/file/below"


def test_doctor_finds_storage_and_data_that_cannot_be_used(file, tmp_path):
    below = blocked(tmp_path)
    change = {"storage_url": f"file://{below}", "data_roots": [below]}
    checks = examine(file(lambda config: arguments_of(config).update(change)))
    assert {name for name, holds in held(checks).items() if not holds} == {"storage", "data root"}
    assert all(check.advice for check in checks if not check.holds)


@pytest.mark.parametrize(
    ("content", "holds"), [("a-token\n", True), ("\n", False), (None, False)], ids=["one", "none", "no file"]
)
def test_doctor_looks_at_tokens(file, tmp_path, content, holds):
    tokens = tmp_path / "tokens"
    if content is not None:
        tokens.write_text(content)
    change = {"allow_no_auth": False, "tokens_file": str(tokens)}
    checks = examine(file(lambda config: arguments_of(config).update(change)))
    assert held(checks)["tokens"] is holds
    assert not any("a-token" in check.found for check in checks)


def test_doctor_warns_of_an_open_service_that_others_reach(file):
    checks = examine(file(lambda config: config["http_options"].update(host=EVERYWHERE)))
    assert [name for name, holds in held(checks).items() if not holds] == ["tokens"]
