"""Settings: typed, complete, and refused rather than guessed."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from deployments.settings import TOKENS_VARIABLE, Section, Settings, environment_tokens


def test_settings_without_tokens_are_refused_and_say_how_to_go_on():
    with pytest.raises(ValidationError, match="no bearer token is configured: set tokens_file or"):
        Settings()


@pytest.mark.parametrize("tokens", ["", " ", ",", " , "])
def test_blank_tokens_are_none(monkeypatch, tokens):
    monkeypatch.setenv(TOKENS_VARIABLE, tokens)
    assert environment_tokens() == []
    with pytest.raises(ValidationError, match="no bearer token"):
        Settings()


def test_tokens_of_the_environment_suffice(monkeypatch):
    monkeypatch.setenv(TOKENS_VARIABLE, " one,two ,")
    assert environment_tokens() == ["one", "two"]
    assert not Settings().allow_no_auth


def test_running_open_must_be_asked_for():
    assert Settings(allow_no_auth=True).tokens_file is None


def test_every_ingress_must_have_a_place_in_the_queue():
    trainer = {"queue_capacity": 3}
    assert Settings(allow_no_auth=True, trainer=trainer, ingress={"replicas": 3})
    with pytest.raises(ValidationError, match=r"queue_capacity must be at least ingress.replicas: 3 < 4"):
        Settings(allow_no_auth=True, trainer=trainer, ingress={"replicas": 4})


def sections():
    """Every part of the settings with the way to it."""
    yield ()
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield (name,)


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


@pytest.mark.parametrize("path", sections(), ids=lambda path: ".".join(path) or "top")
def test_unknown_keys_are_refused_in_every_section(path):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Settings(**{"allow_no_auth": True} | nested(path, {"misspelt": 1}))


def test_every_section_refuses_unknown_keys_and_changes():
    for section in (Settings, *Section.__subclasses__()):
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"]


@pytest.mark.parametrize(
    "changes",
    [
        {"registry": {"ttl_seconds": 0}},
        {"registry": {"max_items": 0}},
        {"trainer": {"queue_capacity": 0}},
        {"trainer": {"gpus_per_trainer": "many"}},
        {"limits": {"body_bytes": -1}},
        {"ingress": {"replicas": 0}},
    ],
)
def test_impossible_values_are_refused(changes):
    with pytest.raises(ValidationError):
        Settings(**{"allow_no_auth": True} | changes)


def test_home_is_expanded_in_storage_and_data_roots():
    settings = Settings(allow_no_auth=True, storage_url="file://~/x", data_roots=("~/data",))
    assert settings.expanded_storage_url() == f"file://{(Path.home() / 'x').resolve()}"
    assert settings.roots() == [Path.home() / "data"]


def test_addresses_of_buckets_stay_as_they_are():
    settings = Settings(allow_no_auth=True, storage_url="s3://bucket/prefix")
    assert settings.expanded_storage_url() == "s3://bucket/prefix"


def test_defaults_are_the_contracts():
    settings = Settings(allow_no_auth=True)
    assert (settings.registry.ttl_seconds, settings.registry.max_items) == (900, 128)


def test_refused_settings_do_not_quote_what_was_given():
    secret = {"storage_options": "AKIA-SECRET", "tokens_file": 987654321, "registry": {"ttl_seconds": "hush"}}
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(secret | {"allow_no_auth": True})
    assert caught.value.error_count() == 3
    assert not any(given in str(caught.value) for given in ("AKIA", "987654321", "hush"))


def shipped(file: str) -> dict:
    """The configuration of Serve in a file of ours."""
    content = yaml.safe_load((Path(__file__).parents[2] / file).read_text())
    return yaml.safe_load(content["spec"]["serveConfigV2"]) if "spec" in content else content


@pytest.mark.parametrize("file", ["serve_config.yaml", "k8s/rayservice.yaml"])
def test_shipped_files_keep_arguments_out_of_the_log_and_our_own_lines_in_it(file):
    """Serve logs them at INFO where it builds the application, by the first of these."""
    content = shipped(file)
    assert content["logging_config"]["log_level"] == "WARNING"
    assert content["applications"][0]["logging_config"] == {"encoding": "JSON", "log_level": "INFO"}
