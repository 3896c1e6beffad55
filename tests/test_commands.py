"""The real program beside a real server, and without one: what it prints, and its exit codes."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from mirror.commands import asking
from mirror.commands.telling import age, size
from tests.fakes.registry import FakeRegistry
from tests.support.commands import Ran, pull, run_here, run_mirror
from tests.support.house import House, mirroring
from tests.support.layers import eventually
from tests.support.process import Process, serving

HUB = "docker.io"
ESCAPE = "\x1b"


def blobs_in(storage: Path) -> list[Path]:
    return list((storage / "blobs").glob("*/*/*"))


async def stocked(mirror: House | Process, registry: FakeRegistry) -> None:
    """Two images with a layer in common."""
    house = House(mirror.url, mirror.storage)
    for tag in ("one", "two"):
        image = registry.add_image("library/app", tag, [b"base", tag.encode() * 1000])
        await pull(house, image, tag=tag)


@pytest.mark.parametrize("serves", [True, False])
async def test_each_command_says_what_it_did(
    registry: FakeRegistry, tmp_path: Path, serves: bool
) -> None:
    """Whether a mirror serves or not."""
    storage = tmp_path / "data"
    settings = {"path": str(storage), "max_size": "1GiB"}
    async with mirroring(tmp_path, {HUB: registry}, storage=settings) as house:
        await stocked(house, registry)
        if serves:
            await all_commands(tmp_path / "mirror.yaml", storage)
    if not serves:
        await all_commands(tmp_path / "mirror.yaml", storage)


async def all_commands(config: Path, storage: Path) -> None:
    async def run(*arguments: str) -> Ran:
        return await run_here(config, *arguments)

    listed = (await run("ls")).out.splitlines()
    assert listed[0].split() == ["IMAGE", "PLATFORMS", "SIZE", "LAST", "USE", "USES"]
    assert [row.split()[0] for row in listed[1:-1]] == [
        "docker.io/library/app:one",
        "docker.io/library/app:two",
    ]
    assert listed[-1].startswith("2 images, ")
    assert listed[-1].endswith(" on disk of 1.0 GiB")
    as_json = json.loads((await run("ls", "--json", "app:*")).out)
    assert {each["tag"] for each in as_json["images"]} == {"one", "two"}
    pinned = await run("pin", "app:one")
    assert pinned.out.startswith("pinned: docker.io/library/app:one, 4 blobs, ")
    refused = await run("rm", "app:one")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == (
        "docker.io/library/app:one is pinned, as one, and stays; `mirror unpin` it first\n"
    )
    removed = await run("rm", "app:two")
    assert removed.out.splitlines() == [
        "forgotten: tag two",
        "removed: 3 blobs, 3.9 KiB",
        "kept: 1 blob, 4 B, which other images need",
    ]
    layer = spoil(storage)
    wrong = await run("verify", "--refetch", "--rate", "100MiB")
    assert (wrong.code, wrong.err) == (3, "")
    all_bytes = sum(path.stat().st_size for path in blobs_in(storage))
    assert wrong.out.splitlines() == [
        f"damaged: {layer}, 4 B, docker.io/library/app",
        f"refetched: {layer}, docker.io/library/app",
        f"checked: 4 blobs, {size(all_bytes)}: 1 wrong and set aside, 1 of them fetched again",
    ]
    right = await run("verify")
    assert (right.code, right.out) == (0, f"checked: 4 blobs, {size(all_bytes)}: all right\n")
    found, swept, found_again = [
        (await run("gc", "--older-than", "0s", *more)).out.splitlines()[-1]
        for more in ([], ["--remove"], [])
    ]
    assert found == "found: 1 file, 4 B; `mirror gc --remove` removes them"
    assert (swept, found_again) == ("removed: 1 file, 4 B", "found: 0 files, 0 B")
    assert (await run("unpin", "app:one")).out.splitlines() == [
        "no longer pinned: docker.io/library/app:one",
        "pinned in all: 0 B, 0 % of 1.0 GiB",
    ]


def spoil(storage: Path) -> str:
    """One layer, whose digest it returns."""
    (layer,) = [path for path in blobs_in(storage) if path.read_bytes() == b"base"]
    layer.write_bytes(b"esab")
    return f"sha256:{layer.name}"


async def test_the_real_program_beside_a_real_server(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    config = tmp_path / "mirror.yaml"
    async with serving(tmp_path, {HUB: registry}) as mirror:
        await stocked(mirror, registry)
        layer = spoil(mirror.storage)
        commands = (
            ["ls"],
            ["pin", "app:one"],
            ["unpin", "app:two"],
            ["rm", "app:none"],
            ["gc"],
            ["verify"],
        )
        ran = await asyncio.gather(*(run_mirror(config, *each) for each in commands))
        assert [each.code for each in ran] == [0, 0, 1, 1, 0, 3]
        assert "2 images" in ran[0].out
        assert ran[2].err.startswith("docker.io/library/app:two is not pinned")
        assert "is not here" in ran[3].err
        assert layer in ran[5].out
        assert (await run_here(config, "rm", "app:two")).code == 0
        assert len(blobs_in(mirror.storage)) == 3
        ended = await killed_while_verifying(mirror, config)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err == "the mirror ended before the command did; run it once more\n"
        assert not any("exception" in line for line in await mirror.last_lines())


async def killed_while_verifying(mirror: Process, config: Path) -> Ran:
    house = House(mirror.url, mirror.storage)
    before = await house.metric("mirror_scrubbed_bytes_total")
    verifying = asyncio.ensure_future(run_here(config, "verify", "--rate", "256B"))

    async def is_verifying() -> bool:
        return await house.metric("mirror_scrubbed_bytes_total") > before

    await eventually(is_verifying)
    mirror.send(signal.SIGKILL)
    return await verifying


async def test_a_folder_that_is_in_use_by_who_does_not_answer(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mirroring(tmp_path, {HUB: registry}) as house:
        (house.storage / "control.sock").unlink()
        monkeypatch.setattr(asking, "WAIT_SECONDS", 0.1)
        ran = await run_here(tmp_path / "mirror.yaml", "ls")
    assert ran.code == 1
    assert "is in use, and nobody answers there" in ran.err


async def test_nothing_is_made_where_there_is_no_cache(tmp_path: Path) -> None:
    config = tmp_path / "mirror.yaml"
    config.write_text(f"storage: {{path: {tmp_path}/data}}")
    for arguments in (["ls"], ["gc", "--remove"], ["verify"], ["rm", "app"]):
        ran = await run_here(config, *arguments)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == f"there is no cache in {tmp_path}/data; is storage.path right?\n"
    assert os.listdir(tmp_path) == [config.name]


async def test_a_look_at_what_nobody_serves_leaves_all_as_it_is(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Also what a start would drop, or evict."""
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await stocked(house, registry)
    (tmp_path / "data" / "staging" / "begun").write_bytes(bytes(5_000))
    (tmp_path / "data" / "staging" / "sha256" / ("0" * 64)).mkdir(parents=True)
    tight = {"path": str(tmp_path / "data"), "max_size": "1KiB"}
    document = {"storage": tight, "upstreams": {HUB: None}}
    (tmp_path / "mirror.yaml").write_text(json.dumps(document))
    for arguments in (["ls"], ["gc", "--older-than", "0s"], ["verify"]):
        ran = await run_here(tmp_path / "mirror.yaml", *arguments)
        assert (ran.code, ran.err) == (0, ""), arguments
        assert len(blobs_in(tmp_path / "data")) == 7
        assert (tmp_path / "data" / "staging" / "begun").exists()
    ran = await run_here(tmp_path / "mirror.yaml", "gc", "--remove")
    assert "staging/begun" in ran.out
    assert f"staging/sha256/{'0' * 64}" in ran.out
    assert not (tmp_path / "data" / "staging" / "begun").exists()


async def test_an_index_that_a_command_has_to_make_anew_is_told_of(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """No start would tell it any more; as where a copy of the folder broke off."""
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await stocked(house, registry)
    (tmp_path / "data" / "index.backup.db").unlink(missing_ok=True)
    os.truncate(tmp_path / "data" / "index.db", 9000)
    first, second = [await run_mirror(tmp_path / "mirror.yaml", "verify") for _ in range(2)]
    assert "the index was rebuilt" in first.err
    assert (first.code, second.code, second.err) == (0, 0, "")


async def test_root_writes_nothing_that_the_mirror_s_user_could_not(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await stocked(house, registry)
    sound = (tmp_path / "data" / "index.sound").stat()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(asking, "_owner_of", lambda _path: 4242)
    ran = await run_here(tmp_path / "mirror.yaml", "ls")
    assert (ran.code, ran.out) == (1, "")
    assert "is the cache of the user 4242; while no mirror serves, run" in ran.err
    assert (tmp_path / "data" / "index.sound").stat() == sound


async def test_who_may_not_open_a_cache_is_told(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await stocked(house, registry)

    def refuse(path: Path) -> list[int]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mirror.store.folder._lock_file", refuse)
    ran = await run_here(tmp_path / "mirror.yaml", "ls")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"{tmp_path}/data/lock: Permission denied; run the command as the user that runs the "
        "mirror\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gc", "--older-than", "1"], "a duration is a number with a unit"),
        (["verify", "--rate", "fast"], "a size is a number with a unit"),
        (["verify", "--rate", "0"], "would never end"),
        (["rm"], "Missing argument"),
    ],
)
async def test_wrong_usage_is_told(tmp_path: Path, arguments: list[str], said: str) -> None:
    config = tmp_path / "mirror.yaml"
    config.write_text(f"storage: {{path: {tmp_path}/data}}")
    ran = await run_here(config, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


async def test_a_terminal_is_sent_no_commands(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {HUB: registry}):
        ran = await run_here(tmp_path / "mirror.yaml", "rm", f"app:{ESCAPE}[2J")
    assert (ran.code, ran.out, ESCAPE in ran.err) == (1, "", False)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (3 << 50, "3.0 PiB"),
    ],
)
def test_sizes_are_told(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


def test_ages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    told = [age(1_000_000.0 - seconds) for seconds in (-5, 0.5, 1, 119, 7200, 86400 * 3)]
    assert told == ["now", "now", "1 second ago", "1 minute ago", "2 hours ago", "3 days ago"]
    assert age(None) == ""
