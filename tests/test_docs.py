"""README.md tells the truth about settings and metrics."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import trustme
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from mirror.config import Settings, load
from mirror.config.model import UpstreamSettings
from mirror.metrics import Metrics

README = (Path(__file__).parents[1] / "README.md").read_text()
SETTINGS = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^```(yaml|json|toml)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
READ: dict[str, Callable[[str], Any]] = {
    "yaml": yaml.safe_load,
    "json": json.loads,
    "toml": tomllib.loads,
}


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """Every key that may stand in the file, on any level."""
    for name, field in model.model_fields.items():
        yield name
        for inner in models_in(field.annotation):
            yield from keys_of(inner)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from models_in(each)


def the_example(folder: Path) -> Settings:
    """The settings' example, its secret and its certificates put where they can be read."""
    secret, certificates = folder / "secret", folder / "ca.pem"
    secret.write_text("s3cret")
    trustme.CA().cert_pem.write_to_path(str(certificates))
    (text,) = re.findall(r"^```yaml\n(.*?)^```", SETTINGS, re.DOTALL | re.MULTILINE)
    text = re.sub(r"(password_file: )\S+", rf"\g<1>{secret}", text)
    text = re.sub(r"(ca_file: )\S+", rf"\g<1>{certificates}", text)
    file = folder / "mirror.yaml"
    file.write_text(text)
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "x")
    return load(file, variables)


@pytest.mark.parametrize("key", sorted(set(keys_of(Settings))))
def test_each_setting_stands_in_the_readme(key: str) -> None:
    assert re.search(rf"\b{key}: ?", SETTINGS)


def test_the_example_of_all_settings_loads_and_tells_the_defaults(tmp_path: Path) -> None:
    told, embedded = the_example(tmp_path), load(None, {})
    for name in set(Settings.model_fields) - {
        "upstreams",
        "default_upstream",
        "storage",
        "proxies",
    }:
        assert getattr(told, name) == getattr(embedded, name), name
    of_the_disk = {"max_size": None, "min_free": None}
    assert told.storage.model_copy(update=of_the_disk) == embedded.storage
    assert told.default_upstream == embedded.default
    hub, default_hub = told.upstreams["docker.io"], embedded.upstreams["docker.io"]
    for name in set(UpstreamSettings.model_fields) - {"credentials"}:
        assert getattr(hub, name) == getattr(default_hub, name), name


def test_the_example_shows_every_key_in_its_place(tmp_path: Path) -> None:
    told = the_example(tmp_path)
    assert told.model_fields_set == set(Settings.model_fields)
    shown = {name for each in told.upstreams.values() for name in each.model_fields_set}
    assert shown == set(UpstreamSettings.model_fields)


@pytest.mark.parametrize(
    "variable", sorted(set(re.findall(r"`(MIRROR_\w+(?:=[^`]*)?)`", SETTINGS)))
)
def test_each_variable_in_the_readme_is_one(variable: str, tmp_path: Path) -> None:
    name, _, value = variable.partition("=")
    values = {"MIRROR_LISTEN": ":1", "MIRROR_STORAGE__PATH": str(tmp_path)}
    load(None, {name: value.strip("'") or values.get(name, "")})


@pytest.mark.parametrize(("language", "text"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_each_example_is_well_formed(language: str, text: str) -> None:
    assert READ[language](text)


def test_services_have_the_time_and_the_answers_that_they_need() -> None:
    """Of a Pod: more than `shutdown_grace` to end, and probes that the mirror answers."""
    (text,) = [text for _, text in EXAMPLES if "kind: StatefulSet" in text]
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    grace_seconds = float(load(None, {}).shutdown_grace)
    assert pod["terminationGracePeriodSeconds"] > grace_seconds
    (stop_seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", README, re.MULTILINE)
    assert int(stop_seconds) > grace_seconds
    (container,) = pod["containers"]
    paths = {name: container[name]["httpGet"]["path"] for name in container if "Probe" in name}
    assert paths == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    variables = {each["name"]: each["value"] for each in container["env"]}
    file = variables.pop("MIRROR_CONFIG")
    (port,) = container["ports"]
    settings = load(None, variables)
    assert settings.listen[1] == port["containerPort"]
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    assert mounted == {str(settings.storage.path), str(Path(file).parent)}


def test_each_metric_stands_in_the_readme() -> None:
    page = Metrics().render().decode()
    counters = {
        f"{each.name}_total"
        for each in text_string_to_metric_families(page)
        if each.type == "counter"
    }
    others = {each.name for each in text_string_to_metric_families(page) if each.type != "counter"}
    names = counters | {name for name in others if not name.endswith("_created")}
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in README} == set()
