"""The rows of the report and the targets that `mirror` has to meet in them."""

from dataclasses import dataclass

from bench.scale import Scale, size_text

MIRROR = "mirror"
PEER = "docker-registry"
DIRECT = "nginx"


@dataclass(frozen=True)
class Target:
    """A bound on mirror's value, or on its ratio to a server's value of the same round."""

    bound: float
    at_least: bool
    ratio_to: str | None = None

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    unit: str
    more_is_better: bool
    target: Target | None = None


def all_rows(scale: Scale) -> list[Row]:
    large, herd = size_text(scale.large_bytes), size_text(scale.herd_bytes)
    many = f"{scale.herd_clients} clients, one cold {herd}"
    peer = PEER
    return [
        Row("manifest_rate", "warm manifest by tag", "req/s", True, Target(15, True, peer)),
        Row("small_rate", f"warm blob {size_text(scale.small_bytes)}", "req/s", True),
        Row(
            "middle_gbps",
            f"warm blob {size_text(scale.middle_bytes)}",
            "GB/s",
            True,
            Target(4, True, peer),
        ),
        Row("large_1_gbps", f"warm blob {large}, 1 client", "GB/s", True),
        Row("large_4_gbps", f"warm blob {large}, 4 clients", "GB/s", True),
        Row("cold_seconds", f"cold blob {large}", "s", False, Target(0.9, False, peer)),
        Row("cold_copies", f"cold blob {large}: upstream bytes", "x", False),
        Row("herd_seconds", f"{many}: all done", "s", False, Target(1.2, False, DIRECT)),
        Row("herd_copies", f"{many}: upstream bytes", "x", False, Target(1.01, False)),
        Row("herd_peak_mib", f"{many}: peak RSS", "MiB", False, Target(150, False)),
        Row("herd_anonymous_mib", f"{many}: peak anonymous", "MiB", False),
    ]
