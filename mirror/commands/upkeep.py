"""The commands that look after a cache, served from or not: what they ask, and what they print."""

import json
import math
from typing import Annotated, Any

import typer

from mirror.commands.asking import carry_out
from mirror.commands.settings import ConfigFile, read_settings
from mirror.commands.telling import age, counted, size, table
from mirror.commands.units import rate_of, seconds_of
from mirror.commands.verifying import Told
from mirror.names import printable
from mirror.upkeep.lines import Line

EXIT_WRONG = 3

Image = Annotated[
    str, typer.Argument(help="As people write it: nginx, quay.io/org/app:1, …@sha256:…")
]


def ls(
    pattern: Annotated[
        str | None,
        typer.Argument(help="A part of a name, or with * and ? the whole: 'ghcr.io/*:v1'."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for programs.")] = False,
    config: ConfigFile = None,
) -> None:
    """List the images that are here."""
    images: list[dict[str, Any]] = []
    total: dict[str, Any] = {}
    carry_out(read_settings(config), "ls", _into(images, total), pattern=pattern)
    if as_json:
        typer.echo(json.dumps({"images": images, "total": total}, indent=2))
        return
    head = ("IMAGE", "PLATFORMS", "SIZE", "LAST USE", "USES", "")
    table(head, [_row(each) for each in images], right=(2, 4))
    on_disk = total["blobs_bytes"] + total["staging_bytes"]
    limit = f" of {size(total['max_bytes'])}" if total["max_bytes"] is not None else ""
    typer.echo(
        f"{counted(total['images'], 'image')}, {size(total['images_bytes'])}; in all "
        f"{counted(total['blobs'], 'blob')}, {size(on_disk)} on disk{limit}"
    )


def rm(image: Image, config: ConfigFile = None) -> None:
    """Forget an image, and remove what no other image needs."""
    done = _asked(config, "rm", image=image)
    for tag in done["tags"]:
        typer.echo(printable(f"forgotten: tag {tag}"))
    for name in done["other_names"]:
        typer.echo(printable(f"still here as {name}"))
    typer.echo(f"removed: {counted(done['removed_blobs'], 'blob')}, {size(done['removed_bytes'])}")
    if done["kept_blobs"]:
        kept = f"{counted(done['kept_blobs'], 'blob')}, {size(done['kept_bytes'])}"
        typer.echo(f"kept: {kept}, which other images need")


def pin(image: Image, config: ConfigFile = None) -> None:
    """Never evict an image, nor what of it arrives later. A pinned tag may move."""
    done = _asked(config, "pin", image=image)
    told = f"{counted(done['blobs'], 'blob')}, {size(done['size_bytes'])}"
    typer.echo(printable(f"pinned: {done['image']}, {told}"))
    _tell_pinned(done)


def unpin(image: Image, config: ConfigFile = None) -> None:
    """Let a pinned image go again, when room is needed."""
    done = _asked(config, "unpin", image=image)
    typer.echo(printable(f"no longer pinned: {done['image']}"))
    _tell_pinned(done)


def gc(
    remove: Annotated[bool, typer.Option("--remove", help="Not only show it.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="DURATION", help="Only what nobody wanted for so long.")
    ] = "1d",
    config: ConfigFile = None,
) -> None:
    """Show what nobody needs. That is: orphaned blobs, begun downloads, damaged files."""
    litter: list[dict[str, Any]] = []
    total: dict[str, Any] = {}
    carry_out(
        read_settings(config),
        "gc",
        _into(litter, total),
        older_than_seconds=seconds_of("--older-than", older_than),
        removes=remove,
    )
    if litter:
        rows = [
            (each["kind"], each["name"], size(each["size_bytes"]), age(each["since"]))
            for each in litter
        ]
        table(("KIND", "NAME", "SIZE", "SINCE"), rows, right=(2,))
    sum_of_all = f"{counted(total['count'], 'file')}, {size(total['size_bytes'])}"
    if total["removed"]:
        typer.echo(f"removed: {sum_of_all}")
    else:
        hint = "; `mirror gc --remove` removes them" if litter else ""
        typer.echo(f"found: {sum_of_all}{hint}")


def verify(
    refetch: Annotated[bool, typer.Option("--refetch", help="Fetch again what is wrong.")] = False,
    rate: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="How much to read per second at most, like 100MiB."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Read all that is here again, and set aside what is wrong. Exit code 3 says that some was."""
    settings, bytes_per_second = read_settings(config), rate_of("--rate", rate)
    with Told() as told:
        carry_out(
            settings, "verify", told.show, bytes_per_second=bytes_per_second, refetches=refetch
        )
    typer.echo(told.summary())
    if told.is_anything_wrong():
        raise typer.Exit(EXIT_WRONG)


def _asked(config: Any, command: str, **arguments: Any) -> dict[str, Any]:
    """The result of a command that has nothing else to tell."""
    total: dict[str, Any] = {}
    carry_out(read_settings(config), command, _into([], total), **arguments)
    return total


def _into(items: list[dict[str, Any]], total: dict[str, Any]) -> Any:
    def show(line: Line) -> None:
        if "item" in line:
            items.append(line["item"])
        total.update(line.get("result", {}))

    return show


def _row(image: dict[str, Any]) -> tuple[str, ...]:
    here, of_all = image["platforms_here"], image["platforms"]
    return (
        image["image"],
        str(of_all) if here == of_all else f"{here} of {of_all}",
        size(image["size_bytes"]),
        age(image["used_at"]),
        str(image["uses"]),
        "pinned" if image["pinned"] else "",
    )


def _tell_pinned(done: dict[str, Any]) -> None:
    if done["max_bytes"] is None:
        typer.echo(f"pinned in all: {size(done['pinned_bytes'])}")
        return
    share = math.ceil(100 * done["pinned_bytes"] / max(1, done["max_bytes"]))
    typer.echo(
        f"pinned in all: {size(done['pinned_bytes'])}, {share} % of {size(done['max_bytes'])}"
    )
