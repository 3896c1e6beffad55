"""Settings from the file and the environment, and what is told of mistakes in them."""

import textwrap
from pathlib import Path

import pytest
from yarl import URL

from mirror.config import ConfigurationError, Settings, load
from mirror.egress import ForwardProxy

WELL_KNOWN = (
    "docker.io, ghcr.io, quay.io, registry.k8s.io, gcr.io, public.ecr.aws, mcr.microsoft.com"
)
TOP = (
    "cache_memory, default_upstream, listen, log, offline, proxies, shutdown_grace, "
    "storage, upstreams, workers"
)
A_DURATION = "a duration is a number with a unit, like 30s, 5m, 12h or 30d"
A_SIZE = "a size is a number with a unit, like 512KiB, 20MiB or 1.5GiB, or 0"
A_NUMBER = "this must be a whole number"
AN_ADDRESS = "an address to listen on is host:port, like 127.0.0.1:5000 or [::]:5000"
AN_ENDPOINT = "an endpoint is http://host[:port][/path], or the same with https://"
NO_V2 = "an endpoint stands before /v2/, which is put behind it for each request: leave it out"
A_HOST = (
    "this must be a registry's host as in image names, like quay.io or registry.corp:5000; "
    "put a short name under `alias`"
)
A_PROXY = (
    "a proxy is http://host:port or https://host:port; user:password@ may stand before the host, "
    "their special characters as %XX"
)
A_MAPPING = "this must be a mapping, one `key: value` per line"
A_LIST = "this must be a list, like [one, two]"
A_TEXT = "this must be text; quote a value that looks like a number or true/false"
QUOTE_IT = "put quotes around a value that starts with a special character such as @, * or %"
A_PASSWORD = "a credential needs either a password or a password_file"  # noqa: S105 - a message
ENDPOINTS_MISSING = f"this is required, except for {WELL_KNOWN}"
TOO_MUCH = "more than 20000 values or 20 levels; no mirror needs so many"


def read(folder: Path, text: str | bytes, environment: dict[str, str] | None = None) -> Settings:
    file = folder / "mirror.yaml"
    file.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
    return load(file, environment or {})


def mistakes(
    folder: Path, text: str | bytes, environment: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        read(folder, text, environment)
    return [str(mistake).replace(f"{folder}/", "") for mistake in raised.value.mistakes]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listn: x", ["mirror.yaml:1: listn: unknown key; did you mean listen?"]),
        ("colour: x", [f"mirror.yaml:1: colour: unknown key; known here: {TOP}"]),
        ("\nstorage:\n  pth: x", ["mirror.yaml:3: storage.pth: unknown key; did you mean path?"]),
        (
            "upstreams:\n  docker.io:\n    tag_tl: 5m",
            ['mirror.yaml:3: upstreams["docker.io"].tag_tl: unknown key; did you mean tag_ttl?'],
        ),
        (
            "upstreams: {a.b:5: {endpoints: ['http://x'], tls: {skip_verfy: true}}}",
            [
                'mirror.yaml:1: upstreams["a.b:5"].tls.skip_verfy: unknown key; '
                "did you mean skip_verify?"
            ],
        ),
        (
            "upstreams:\n  quay.io:\n    credentials:\n      - username: a\n        pasword: b",
            [
                f'mirror.yaml:4: upstreams["quay.io"].credentials[0]: {A_PASSWORD}',
                'mirror.yaml:5: upstreams["quay.io"].credentials[0].pasword: unknown key; '
                "did you mean password?",
            ],
        ),
    ],
    ids=["top", "nothing near", "storage", "upstream", "tls", "credential"],
)
def test_an_unknown_key_is_a_mistake_that_names_the_nearest_known(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    assert mistakes(tmp_path, text) == expected


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file_then_of_the_environment(
    tmp_path: Path,
) -> None:
    text = """\
        listen: 5000
        upstreams:
          docker.io: {alias: hub, tag_ttl: 5}
          quay.io:
            alias: hub
            credentials: [{password: p, password_file: /nowhere}]
        default_upstream: ghcr.io
        offline: perhaps
        offline: ${UNSET}
        """
    environment = {"MIRROR_LOG__LEVEL": "loud", "MIRROR_OFLINE": "true"}
    assert mistakes(tmp_path, text, environment) == [
        f"mirror.yaml:1: listen: {AN_ADDRESS}",
        f'mirror.yaml:3: upstreams["docker.io"].tag_ttl: {A_DURATION}',
        "mirror.yaml:5: upstreams[\"quay.io\"].alias: 'hub' already stands for another upstream",
        f'mirror.yaml:6: upstreams["quay.io"].credentials[0]: {A_PASSWORD}',
        'mirror.yaml:6: upstreams["quay.io"].credentials[0].username: this is required',
        'mirror.yaml:6: upstreams["quay.io"].credentials[0].password_file: '
        "there is no file /nowhere",
        "mirror.yaml:7: default_upstream: 'ghcr.io' is not one of the upstreams: "
        "docker.io, quay.io",
        "mirror.yaml:9: offline: the environment variable UNSET is not set; "
        "${UNSET:-…} gives a default",
        "mirror.yaml:9: offline: this key appears twice",
        "MIRROR_LOG__LEVEL: log.level: this must be 'debug', 'info', 'warning' or 'error'",
        "MIRROR_OFLINE: ofline: no setting has this name; did you mean MIRROR_OFFLINE?",
    ]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("listen: 5000", "listen", AN_ADDRESS),
        ("listen: localhost", "listen", AN_ADDRESS),
        ("listen: '127.0.0.1:70000'", "listen", "a port is a number up to 65535"),
        ("listen: '::1:5000'", "listen", AN_ADDRESS),
        ("storage: /data", "storage", A_MAPPING),
        ("storage:", "storage", A_MAPPING),
        ("storage: {path: 3}", "storage.path", "this must be a path, as text"),
        ("storage: {path: ''}", "storage.path", "this must be a path"),
        ("offline: perhaps", "offline", "this must be true or false"),
        ("offline: [true]", "offline", "this must be true or false"),
        ("cache_memory: 64", "cache_memory", A_SIZE),
        (
            "storage: {max_size: 0}",
            "storage.max_size",
            "with no room nothing is kept; leave it out where the disk is the limit",
        ),
        (
            "cache_memory: 15MiB",
            "cache_memory",
            "this must be at least 16MiB: half of it has to hold a large manifest or two",
        ),
        ("shutdown_grace: 30", "shutdown_grace", A_DURATION),
        ("shutdown_grace: 30 parsecs", "shutdown_grace", A_DURATION),
        ("shutdown_grace: -1s", "shutdown_grace", A_DURATION),
        ("shutdown_grace: ''", "shutdown_grace", A_DURATION),
        ("workers: 0", "workers", "this must be a whole number from 1 to 64"),
        ("workers: 65", "workers", "this must be a whole number from 1 to 64"),
        ("workers: yes", "workers", A_NUMBER),
        ("log: {format: xml}", "log.format", "this must be 'json' or 'text'"),
        ("default_upstream: 3", "default_upstream", A_TEXT),
        ("proxies: {https: 3128}", "proxies.https", A_PROXY),
        ("proxies: {https: 'socks5://proxy:1080'}", "proxies.https", A_PROXY),
        ("proxies: {https: 'http://a:hunter2@'}", "proxies.https", A_PROXY),
        ("proxies: {http: 'http://proxy:99999'}", "proxies.http", A_PROXY),
        ("proxies: {http: 'http://a%3Ab:c@proxy'}", "proxies.http", A_PROXY),
        ("proxies: {http: 'http://proxy/path'}", "proxies.http", A_PROXY),
        ("proxies: {none_for: {}}", "proxies.none_for", A_LIST),
        ("upstreams:", "upstreams", A_MAPPING),
        ("upstreams: [docker.io]", "upstreams", A_MAPPING),
        ("upstreams: {}", "upstreams", "at least one is needed here"),
    ],
)
def test_wrong_values(tmp_path: Path, text: str, path: str, message: str) -> None:
    assert mistakes(tmp_path, text) == [f"mirror.yaml:1: {path}: {message}"]


@pytest.mark.parametrize(
    ("setting", "path", "message"),
    [
        ("{}", "endpoints", ENDPOINTS_MISSING),
        ("{endpoints: []}", "endpoints", "at least one is needed here"),
        ("{endpoints: 'https://a.b'}", "endpoints", A_LIST),
        ("{endpoints: [a.b]}", "endpoints[0]", AN_ENDPOINT),
        ("{endpoints: ['https://a.b', 'ftp://a.b']}", "endpoints[1]", AN_ENDPOINT),
        ("{endpoints: ['https://a.b?x=y']}", "endpoints[0]", AN_ENDPOINT),
        ("{endpoints: ['https://a.b:99999']}", "endpoints[0]", AN_ENDPOINT),
        ("{endpoints: ['https://[::1']}", "endpoints[0]", AN_ENDPOINT),
        ("{endpoints: ['https://']}", "endpoints[0]", AN_ENDPOINT),
        ("{endpoints: ['https://a.b/v2']}", "endpoints[0]", NO_V2),
        ("{endpoints: ['https://a.b/docker/v2/']}", "endpoints[0]", NO_V2),
        ("{endpoints: [3]}", "endpoints[0]", A_TEXT),
        (
            "{endpoints: ['https://alice:hunter2@a.b']}",
            "endpoints[0]",
            "a login does not belong in an endpoint; put it under `credentials`",
        ),
        (
            "{endpoints: ['http://x'], alias: A/B}",
            "alias",
            "an alias is lower-case letters and digits, separated by single . _ or -",
        ),
        (
            "{endpoints: ['http://x'], alias: v2}",
            "alias",
            "every path begins with v2; an alias needs a name of its own",
        ),
        ("{endpoints: ['http://x'], alias: on}", "alias", A_TEXT),
        (
            "{endpoints: ['http://x'], path_prefix: A/}",
            "path_prefix",
            "a path prefix is the start of a repository name",
        ),
        ("{endpoints: ['http://x'], connect_timeout: 0s}", "connect_timeout", "longer than 0s"),
        (
            "{endpoints: ['http://x'], max_connections: 1}",
            "max_connections",
            "this must be a number from 2, one for blobs and one for the rest, to 10000",
        ),
        (
            "{endpoints: ['http://x'], max_connections: 10001}",
            "max_connections",
            "one for blobs and one for the rest, to 10000",
        ),
        ("{endpoints: ['http://x'], max_connections: many}", "max_connections", A_NUMBER),
        (
            "{endpoints: ['http://x'], max_rate: 1KiB}",
            "max_rate",
            "with less than 64KiB in a second no image would ever arrive",
        ),
        ("{endpoints: ['http://x'], max_rate: 20}", "max_rate", A_SIZE),
        ("{endpoints: ['http://x'], tag_ttl: 5 m}", "tag_ttl", A_DURATION),
        ("{endpoints: ['http://x'], when_gone: cry}", "when_gone", "'forget' or 'serve'"),
        (
            "{endpoints: ['http://x'], token_realms: ['https://auth.a.b/token']}",
            "token_realms[0]",
            "a token realm is a host, like auth.corp or auth.corp:8443",
        ),
        ("{endpoints: ['http://x'], tls: {skip_verify: 7}}", "tls.skip_verify", "true or false"),
        (
            "{endpoints: ['http://x'], tls: {ca_file: /nowhere}}",
            "tls.ca_file",
            "there is no file /nowhere",
        ),
        (
            f"{{endpoints: ['http://x'], tls: {{ca_file: {__file__}}}}}",
            "tls.ca_file",
            f"the file {__file__} contains no PEM certificates",
        ),
    ],
)
def test_wrong_values_of_an_upstream(tmp_path: Path, setting: str, path: str, message: str) -> None:
    (told,) = mistakes(tmp_path, f"upstreams: {{a.b: {setting}}}")
    assert told.startswith(f'mirror.yaml:1: upstreams["a.b"].{path}: ')
    assert told.endswith(message)


@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        ("{username: a}", [f": {A_PASSWORD}"]),
        (f"{{username: a, password: b, password_file: {__file__}}}", [f": {A_PASSWORD}"]),
        ("{username: a, password_file: /nowhere}", [".password_file: there is no file /nowhere"]),
        ("{username: a, password_file: /}", [".password_file: there is no file /"]),
        (
            "{username: 'a:b', password: c}",
            [".username: a user name must not be empty, nor contain a colon"],
        ),
        (
            "{username: '', password: c}",
            [".username: a user name must not be empty, nor contain a colon"],
        ),
        ("{username: 1234, password: 56}", [f".username: {A_TEXT}", f".password: {A_TEXT}"]),
        ('{username: a, password: "b\\nc"}', [".password: a password is a single line of text"]),
        ('{username: a, password: "\\n"}', [".password: a password must not be empty"]),
        ("alice", [f": {A_MAPPING}"]),
    ],
)
def test_wrong_credentials(tmp_path: Path, credential: str, expected: list[str]) -> None:
    told = mistakes(tmp_path, f"upstreams: {{quay.io: {{credentials: [{credential}]}}}}")
    start = 'mirror.yaml:1: upstreams["quay.io"].credentials[0]'
    assert len(told) == len(expected)
    assert all(each.startswith(start + end) for each, end in zip(told, expected, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("upstreams: {quay: {endpoints: ['http://x']}}", f"upstreams.quay: {A_HOST}"),
        ("upstreams: {'https://a.b': {endpoints: ['http://x']}}", f'["https://a.b"]: {A_HOST}'),
        (
            "upstreams: {index.docker.io: {endpoints: ['http://x']}}",
            'upstreams["index.docker.io"]: images call this registry docker.io; use that name',
        ),
        (
            "upstreams: {quay.io: {alias: docker.io}, docker.io: {}}",
            "upstreams[\"quay.io\"].alias: 'docker.io' already stands for another upstream",
        ),
        (
            "upstreams: {docker.io: {}, quay.io: {alias: index.docker.io}}",
            "upstreams[\"quay.io\"].alias: 'index.docker.io' already stands for another upstream",
        ),
        (
            "default_upstream: quai.io",
            "default_upstream: 'quai.io' is not one of the upstreams: docker.io, gcr.io, ghcr.io, "
            "mcr.microsoft.com, public.ecr.aws, quay.io, registry.k8s.io",
        ),
    ],
)
def test_names_that_do_not_go_together(tmp_path: Path, text: str, expected: str) -> None:
    (told,) = mistakes(tmp_path, text)
    assert told.startswith("mirror.yaml:1: ")
    assert told.endswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "listen: [",
            "mirror.yaml:1: this is not valid YAML: a value is missing, or a bracket is not closed",
        ),
        (
            "log:\n\tlevel: info",
            "mirror.yaml:2: this is not valid YAML: indent with spaces, not with tabs",
        ),
        (
            "listen: *x",
            f"mirror.yaml:1: this is not valid YAML: this alias (*) has no anchor (&); {QUOTE_IT}",
        ),
        ("listen: @x", f"mirror.yaml:1: this is not valid YAML: {QUOTE_IT}"),
        ("listen: *", f"mirror.yaml:1: this is not valid YAML: {QUOTE_IT}"),
        (
            "log: x: y",
            "mirror.yaml:1: this is not valid YAML: a colon is not allowed here; check the "
            "indentation, or put quotes around a value that contains a colon and a space",
        ),
        (
            "log: {level: info\nx: y",
            "mirror.yaml:2: this is not valid YAML: a bracket is not closed, or a comma is missing",
        ),
        (
            "log:\n  level\n  x: y",
            "mirror.yaml:3: this is not valid YAML: a colon is not allowed here; check the "
            "indentation, or put quotes around a value that contains a colon and a space",
        ),
        ("log:\n  level\nx", "mirror.yaml:3: this is not valid YAML: a key must be followed by "),
        (
            'listen: "\\d"',
            "mirror.yaml:1: this is not valid YAML: within double quotes a backslash is written "
            r"\\",
        ),
        (
            "listen: 'x",
            "mirror.yaml:1: this is not valid YAML: check the indentation, brackets and quotes on "
            "this line and above",
        ),
        (
            "listen: :1\n---\nlisten: :2",
            "mirror.yaml:2: this is not valid YAML: the file must hold a single document, without "
            "a `---` inside",
        ),
        ("listen:\n  x\0y", "mirror.yaml:2: the character '\\x00' is not allowed"),
        (b"listen: \xff", "mirror.yaml: is not UTF-8 text at byte 8"),
        (b"#" * (1024 * 1024 + 1), "mirror.yaml: is larger than 1048576 bytes"),
        ("- listen", "mirror.yaml:1: the file must be a mapping of settings, like `listen: …`"),
        ("listen", "mirror.yaml:1: the file must be a mapping of settings, like `listen: …`"),
        ("log:\n  ? [a]\n  : b", 'mirror.yaml:2: log["?"]: a key must be plain text'),
        ("log: {level: info, level: info}", "mirror.yaml:1: log.level: this key appears twice"),
        ("log: !log {}", "mirror.yaml:1: log: a tag (!) is not supported here"),
        (
            "listen: !!python/object:os.system x",
            f"mirror.yaml:1: listen: this value cannot be read; {QUOTE_IT}",
        ),
        ("listen: 2026-13-01", "mirror.yaml:1: listen: this value cannot be read"),
        ("upstreams: {quay.io: {<<: 3}}", '["quay.io"]["<<"]: only a mapping can be merged'),
    ],
    ids=lambda text: text[:20] if isinstance(text, str) and len(text) < 60 else "",
)
def test_what_cannot_be_read(tmp_path: Path, text: str | bytes, expected: str) -> None:
    (told,) = mistakes(tmp_path, text)
    assert expected in told


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED_BOMB = "a: &a {x: y}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, MERGED_BOMB, "a: &a [*a]", "a: &a {<<: *a}", "a: &a {b: *a}", "[" * 600, "{a: " * 600],
    ids=["bomb", "merged bomb", "recursive", "merges itself", "holds itself", "deep", "deep map"],
)
def test_a_file_that_means_more_than_it_says_is_refused(tmp_path: Path, text: str) -> None:
    assert mistakes(tmp_path, text) == [f"mirror.yaml: {TOO_MUCH}"]


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path / name, {})
    (told,) = raised.value.mistakes
    assert str(told).startswith(f"{tmp_path / name}: cannot be read: ")
    assert str(told).endswith("; check --config or MIRROR_CONFIG")


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "---\n", "{}", "\ufeff"])
def test_without_a_word_the_well_known_registries_are_mirrored(
    tmp_path: Path, text: str | None
) -> None:
    settings = load(None, {}) if text is None else read(tmp_path, text)
    assert list(settings.upstreams) == WELL_KNOWN.split(", ")
    assert settings.upstreams["docker.io"].endpoints == ("https://registry-1.docker.io",)
    assert settings.upstreams["quay.io"].endpoints == ("https://quay.io",)
    assert settings.default == "docker.io"
    assert settings.listen == ("127.0.0.1", 5000)
    assert settings.storage.path == Path("mirror-data")
    assert not settings.offline


def test_a_list_of_upstreams_is_closed_and_well_known_ones_need_no_endpoints(
    tmp_path: Path,
) -> None:
    text = "upstreams: {quay.io: , ghcr.io: {tag_ttl: 1h}, a.b: {endpoints: ['http://x:5/y']}}"
    settings = read(tmp_path, text)
    assert list(settings.upstreams) == ["quay.io", "ghcr.io", "a.b"]
    assert settings.upstreams["quay.io"].endpoints == ("https://quay.io",)
    assert settings.upstreams["ghcr.io"].endpoints == ("https://ghcr.io",)
    assert settings.upstreams["ghcr.io"].tag_ttl == 3600
    assert settings.default is None


def test_anchors_and_merges_share_settings_between_upstreams(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """\
        upstreams:
          quay.io: &common {tag_ttl: 1h, stale_for: 1d}
          ghcr.io: {<<: *common, stale_for: 2d}
          gcr.io: {<<: [{tag_ttl: 3s}, *common]}
        """,
    )
    ttls = {name: (each.tag_ttl, each.stale_for) for name, each in settings.upstreams.items()}
    day = 86400
    assert ttls == {"quay.io": (3600, day), "ghcr.io": (3600, 2 * day), "gcr.io": (3, day)}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("${LISTEN}", {"LISTEN": "127.0.0.1:1"}, ("127.0.0.1", 1)),
        ("'${HOST}:${PORT:-2}'", {"HOST": "a"}, ("a", 2)),
        ("${LISTEN:-127.0.0.1:3}", {}, ("127.0.0.1", 3)),
        ("${LISTEN:-x}", {"LISTEN": ":4"}, ("", 4)),
    ],
)
def test_variables_in_the_file(
    tmp_path: Path, text: str, environment: dict[str, str], expected: tuple[str, int]
) -> None:
    assert read(tmp_path, f"listen: {text}", environment).listen == expected


def test_a_doubled_dollar_is_one(tmp_path: Path) -> None:
    settings = read(tmp_path, "storage: {path: '/a/$${B}/$c/${D:-}e'}")
    assert settings.storage.path == Path("/a/${B}/$c/e")


@pytest.mark.parametrize("text", ["${a-b}", "${", "${1}", "${A:default}"])
def test_a_malformed_variable_is_not_taken_for_text(tmp_path: Path, text: str) -> None:
    assert mistakes(tmp_path, f"storage: {{path: '{text}'}}") == [
        "mirror.yaml:1: storage.path: a variable is ${NAME} or ${NAME:-default}; "
        "for a plain ${ write $${"
    ]


def test_variables_lie_over_the_file(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        "listen: ${UNSET}\nupstreams: {a.b: {tag_tl: 5m}}\nlog: {level: debug}",
        {
            "MIRROR_LISTEN": "[::1]:6000",
            "MIRROR_OFFLINE": "true",
            "MIRROR_UPSTREAMS": '{"quay.io": {"tag_ttl": "1h"}}',
            "MIRROR_LOG__FORMAT": "text",
        },
    )
    assert settings.listen == ("::1", 6000)
    assert settings.offline
    assert list(settings.upstreams) == ["quay.io"]
    assert (settings.log.format, settings.log.level) == ("text", "debug")


@pytest.mark.parametrize("variable", ["MIRROR_STORAGE__PATH", "MIRROR_STORAGE_PATH"])
def test_one_or_two_underscores_lead_one_level_down(variable: str) -> None:
    assert load(None, {variable: "/data"}).storage.path == Path("/data")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"MIRROR_LISTN": ":1"},
            "MIRROR_LISTN: listn: no setting has this name; did you mean MIRROR_LISTEN?",
        ),
        (
            {"MIRROR_LOG_LEVL": "info"},
            "MIRROR_LOG_LEVL: log.levl: no setting has this name; did you mean MIRROR_LOG__LEVEL?",
        ),
        (
            {"MIRROR_STORAGE__FOLDER": "1GiB"},
            "MIRROR_STORAGE__FOLDER: storage.folder: no setting has this name; "
            "known here: MIRROR_STORAGE__MAX_SIZE, MIRROR_STORAGE__MIN_FREE, MIRROR_STORAGE__PATH, "
            "MIRROR_STORAGE__SCRUB_RATE",
        ),
        ({"MIRROR_LISTEN": ""}, f"MIRROR_LISTEN: listen: {AN_ADDRESS}"),
        ({"MIRROR_LOG": "text"}, f"MIRROR_LOG: log: {A_MAPPING}"),
        (
            {"MIRROR_UPSTREAMS": '{"quay.io": '},
            "MIRROR_UPSTREAMS: upstreams: this starts like JSON, but is not valid at character 13",
        ),
        (
            {"MIRROR_UPSTREAMS": '{"quay.io": {"tag_tl": "5m"}}'},
            'MIRROR_UPSTREAMS: upstreams["quay.io"].tag_tl: unknown key; did you mean tag_ttl?',
        ),
        (
            {"MIRROR_UPSTREAMS__QUAY.IO:1__TAG_TTL": "5m"},
            'MIRROR_UPSTREAMS__QUAY.IO:1__TAG_TTL: upstreams["quay.io:1"].endpoints: '
            f"{ENDPOINTS_MISSING}",
        ),
    ],
)
def test_mistakes_in_variables_name_the_variable(
    environment: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(None, environment)
    assert [str(mistake) for mistake in raised.value.mistakes] == [expected]


def test_what_kubernetes_puts_into_the_environment_is_not_for_us() -> None:
    environment = {
        "MIRROR_CONFIG": "/etc/mirror.yaml",
        "MIRROR_SERVICE_HOST": "10.0.0.1",
        "MIRROR_SERVICE_PORT": "5000",
        "MIRROR_SERVICE_PORT_HTTP": "5000",
        "MIRROR_PORT": "tcp://10.0.0.1:5000",
        "MIRROR_PORT_5000_TCP": "tcp://10.0.0.1:5000",
        "MIRROR_PORT_5000_TCP_ADDR": "10.0.0.1",
        "MIRROR_METRICS_SERVICE_HOST": "10.0.0.2",
        "MIRROR_METRICS_PORT_80_TCP_PROTO": "tcp",
    }
    assert load(None, environment) == load(None, {})


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    text = "upstreams: {quay.io: {credentials: [{username: a, password: hunter2}]}}"
    settings = read(tmp_path, text)
    assert settings.upstreams["quay.io"].credentials[0].read_password() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert "hunter2" not in settings.model_dump_json()
    wrong = text.replace("hunter2", "{x: hunter2}")
    assert not any("hunter2" in told for told in mistakes(tmp_path, wrong))


def test_a_password_file_is_read_anew_for_each_login(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one\n")
    settings = read(
        tmp_path,
        f"upstreams: {{quay.io: {{credentials: [{{username: a, password_file: {secret}}}]}}}}",
    )
    credential = settings.upstreams["quay.io"].credentials[0]
    assert credential.read_password() == "one"
    secret.write_text("two\r\n")
    assert credential.read_password() == "two"
    secret.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        credential.read_password()


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfone", b"\xef\xbb\xbfone\r\n", "ünïcode\n".encode()]
)
def test_a_password_file_is_text_as_any_editor_writes_it(tmp_path: Path, content: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content)
    login = f"{{username: a, password_file: {secret}}}"
    settings = read(tmp_path, f"upstreams: {{quay.io: {{credentials: [{login}]}}}}")
    password = settings.upstreams["quay.io"].credentials[0].read_password()
    assert password == content.decode("utf-8-sig").strip()


def test_a_password_file_of_several_lines_holds_no_password(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("alice\nhunter2\n")
    login = f"{{username: a, password_file: {secret}}}"
    settings = read(tmp_path, f"upstreams: {{quay.io: {{credentials: [{login}]}}}}")
    with pytest.raises(ValueError, match="single line"):
        settings.upstreams["quay.io"].credentials[0].read_password()


def test_the_newline_behind_a_secret_does_not_belong_to_it(tmp_path: Path) -> None:
    """As `echo` leaves it in a secret that comes as a variable."""
    text = "upstreams: {quay.io: {credentials: [{username: a, password: '${SECRET}'}]}}"
    settings = read(tmp_path, text, {"SECRET": "hunter2\n"})
    assert settings.upstreams["quay.io"].credentials[0].read_password() == "hunter2"


class TestProxies:
    def test_a_proxy_is_written_as_people_do(self, tmp_path: Path) -> None:
        text = "proxies: {https: 'proxy.corp:3128', http: 'HTTP://us%20er:p%40ss@proxy.corp/'}"
        proxies = read(tmp_path, text).proxies
        assert proxies.https == ForwardProxy(URL("http://proxy.corp:3128"))
        assert proxies.http == ForwardProxy(URL("http://proxy.corp"), ("us er", "p@ss"))
        assert "p@ss" not in repr(proxies)
        assert "p%40ss" not in repr(proxies)

    def test_what_all_programs_are_told_counts_where_nothing_is_said(self, tmp_path: Path) -> None:
        environment = {
            "HTTPS_PROXY": "http://upper:1",
            "https_proxy": "http://lower:1",
            "HTTP_PROXY": "",
            "NO_PROXY": "localhost, .corp,10.0.0.0/8,",
        }
        proxies = read(tmp_path, "", environment).proxies
        assert proxies.https == ForwardProxy(URL("http://lower:1"))
        assert proxies.http is None
        assert proxies.none_for == ("localhost", ".corp", "10.0.0.0/8")
        for text, more in (
            ("proxies: {}", {}),
            ("proxies: {http: 'http://ours:1'}", {}),
            ("", {"MIRROR_PROXIES__HTTP": "http://ours:1"}),
        ):
            said = read(tmp_path, text, environment | more).proxies
            assert (said.https, said.none_for) == (None, ())

    def test_the_variable_that_is_wrong_is_named_and_not_quoted(self, tmp_path: Path) -> None:
        environment = {"HTTPS_PROXY": "socks5://alice:hunter2@proxy:1080"}
        assert mistakes(tmp_path, "", environment) == [f"HTTPS_PROXY: proxies.https: {A_PROXY}"]
