"""The commands: what they print, where, and with which exit code."""

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mirror import __version__
from mirror.cli import app
from mirror.store.blobs import BlobStore
from mirror.store.schema import VERSION
from tests.real.mirror import IMPORTABLE
from tests.real.programs import free_port

# Makes serving from the folder on the address impossible; the value is what is then said.
Obstacle = Callable[[Path, str], AbstractContextManager[str]]
SECRET = "hunter2"  # noqa: S105 - of nobody


def mirror(*arguments: str, **environment: str) -> Result:
    """Runs the command in this process; what goes past Python to stderr is for `capfd`."""
    return CliRunner().invoke(app, arguments, env={"MIRROR_CONFIG": None, **environment})


def config(folder: Path, text: str) -> str:
    file = folder / "mirror.yaml"
    file.write_text(text)
    return str(file)


def test_the_version_is_printed() -> None:
    result = mirror("version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


def test_help_names_the_commands() -> None:
    result = mirror("--help")
    assert result.exit_code == 0
    names = ("serve", "check-config", "version", "ls", "rm", "pin", "unpin", "gc", "verify")
    assert all(f" {name} " in result.stdout for name in names)


def test_a_valid_configuration_is_said_to_be_valid(tmp_path: Path) -> None:
    file = config(tmp_path, "upstreams: {quay.io: , ghcr.io: }")
    result = mirror("check-config", "--config", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "The configuration is valid; upstreams: ghcr.io, quay.io\n"


def test_without_a_file_the_defaults_are_checked() -> None:
    result = mirror("check-config")
    assert result.exit_code == 0
    assert "docker.io" in result.stdout


@pytest.mark.parametrize("command", [["ls"], ["gc"], ["verify"], []])
def test_help_is_plain_and_whole(command: list[str]) -> None:
    """A switch takes no value, and no sentence is cut; nor is it drawn in boxes."""
    told = mirror(*command, "--help").stdout
    assert "<bool>" not in told
    assert "..." not in told.replace("[ARGS]...", "")
    assert told.isascii() or not command


def test_wrong_usage_is_one_line_that_can_be_searched_for() -> None:
    result = mirror("gc", "--remove", "true")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: Got unexpected extra argument(s) (true)" in result.stderr.splitlines()


def test_output_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    """As on a full disk, which is when an operator looks."""
    file = config(tmp_path, "upstreams: {quay.io: }")
    arguments = [sys.executable, "-m", "mirror", "check-config", "--config", file]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            arguments,
            env={**os.environ, **IMPORTABLE},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.stderr == "the output cannot be written: No space left on device\n"
    assert ran.returncode == 1


@pytest.mark.parametrize("argument", ["--version", "version"])
def test_the_version_is_told(argument: str) -> None:
    result = mirror(argument)
    assert (result.exit_code, result.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_each_mistake_is_a_line_on_stderr(tmp_path: Path, command: str) -> None:
    file = config(tmp_path, "listn: x\noffline: perhaps")
    result = mirror(command, MIRROR_CONFIG=file, MIRROR_LISTEN="x")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"{file}:1: listn: unknown key; did you mean listen?",
        f"{file}:2: offline: this must be true or false",
        "MIRROR_LISTEN: listen: an address to listen on is host:port, like 127.0.0.1:5000 or "
        "[::]:5000",
        "3 mistakes in the configuration",
    ]


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_a_missing_file_is_a_mistake(tmp_path: Path, command: str) -> None:
    file = tmp_path / "missing.yaml"
    result = mirror(command, "--config", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"{file}: cannot be read: No such file or directory; check --config or MIRROR_CONFIG\n"
        "1 mistake in the configuration\n"
    )


@pytest.mark.parametrize(
    "credential",
    [
        f"{{username: alice, password: {SECRET}}}",
        f"{{username: alice, password: {SECRET}, password_file: /nowhere}}",
        f"{{username: '', password: {SECRET}}}",
        f"{{username: alice, password: [{SECRET}]}}",
        f"{{username: alice, pasword: {SECRET}}}",
        f"{SECRET}",
        f"{{username: alice, password: {SECRET}",
        f"{{username: alice, password: '{SECRET}${{}}'}}",
    ],
)
def test_a_secret_is_never_printed(tmp_path: Path, credential: str) -> None:
    file = config(tmp_path, f"upstreams: {{quay.io: {{credentials: [{credential}]}}}}")
    result = mirror("check-config", "--config", file)
    assert SECRET not in result.output
    variable = mirror("check-config", MIRROR_UPSTREAMS=f'{{"quay.io": {{"x": "{SECRET}"}} ')
    assert variable.exit_code == 2
    assert SECRET not in variable.output


@contextmanager
def a_used_port(_folder: Path, address: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        yield (
            f"cannot listen on {address}: address already in use; set a different address under "
            "`listen`"
        )


@contextmanager
def a_folder_in_use(folder: Path, _address: str) -> Iterator[str]:
    store = BlobStore(folder)
    asyncio.run(store.open())
    yield (
        f"another mirror uses {folder}, or a command that looks after it; stop that, or set a "
        "different storage.path"
    )
    asyncio.run(store.aclose())


@contextmanager
def a_newer_index(folder: Path, _address: str) -> Iterator[str]:
    folder.mkdir()
    with sqlite3.connect(folder / "index.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    yield (
        f"{folder}: the index is of version 99; this mirror knows {VERSION}; "
        "install the newer version again, or set a different storage.path"
    )


@contextmanager
def a_file_in_the_way(folder: Path, _address: str) -> Iterator[str]:
    folder.write_text("no folder")
    yield f"{folder}/blobs: Not a directory; the mirror must be able to write to storage.path"


def test_an_address_is_told_as_it_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"[2001:db8::1]:{free_port()}"  # of nobody: for examples
    result = mirror("serve", MIRROR_LISTEN=address, MIRROR_STORAGE__PATH=str(tmp_path / "data"))
    assert result.exit_code == 1
    assert f"cannot listen on {address}: " in capfd.readouterr().err


@pytest.mark.parametrize(
    "obstacle", [a_used_port, a_folder_in_use, a_newer_index, a_file_in_the_way]
)
def test_what_hinders_serving_is_one_sentence_that_says_what_to_do(
    obstacle: Obstacle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, address = tmp_path / "data", f"127.0.0.1:{free_port()}"
    with obstacle(folder, address) as sentence:
        result = mirror(
            "serve",
            MIRROR_LISTEN=address,
            MIRROR_STORAGE__PATH=str(folder),
            MIRROR_LOG__FORMAT="text",
        )
    (line,) = capfd.readouterr().err.splitlines()
    assert (result.exit_code, result.output) == (1, "")
    assert line.endswith(f' level=error event="mirror cannot serve" reason="{sentence}"')
