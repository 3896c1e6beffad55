"""The rows of the report and the targets that `mirror` has to meet in them."""

from dataclasses import dataclass

from bench.scale import Scale, size_text

MIRROR = "mirror"
TWO_MIRRORS = "mirror-2"
DIRECT = "nginx-static"
BEST = "the best peer"
"""Of the caches that are not mirror and have a value in that round."""


@dataclass(frozen=True)
class Target:
    """A bound on mirror's value, or on its ratio to a server's value of the same round."""

    bound: float
    at_least: bool
    ratio_to: str | None = None
    subject: str = MIRROR

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float, ratio_to: str | None = None, subject: str = MIRROR) -> Target:
    return Target(bound, True, ratio_to, subject)


def at_most(bound: float, ratio_to: str | None = None, subject: str = MIRROR) -> Target:
    return Target(bound, False, ratio_to, subject)


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    unit: str
    more_is_better: bool
    targets: tuple[Target, ...] = ()


def all_rows(scale: Scale) -> list[Row]:
    return [*_warm_rows(scale), *_cold_rows(scale), *_herd_rows(scale), *_far_rows(scale)]


def _warm_rows(scale: Scale) -> list[Row]:
    small, middle = size_text(scale.small_bytes), size_text(scale.middle_bytes)
    large = size_text(scale.large_bytes)
    manifest_targets = (
        at_least(1.3, "zot"),
        at_least(0.8, "drayage", TWO_MIRRORS),
        at_least(30, "docker-registry"),
    )
    return [
        Row("manifest_rate", "warm manifest by tag", "req/s", True, manifest_targets),
        Row("small_rate", f"warm blob {small}", "req/s", True, (at_least(1.5, "zot"),)),
        Row("middle_gbps", f"warm blob {middle}", "GB/s", True, (at_least(0.9, DIRECT),)),
        Row(
            "large_1_gbps",
            f"warm blob {large}, 1 client",
            "GB/s",
            True,
            (at_least(0.9, "nginx-cache"),),
        ),
        Row(
            "large_4_gbps",
            f"warm blob {large}, 4 clients",
            "GB/s",
            True,
            (at_least(0.9, "nginx-cache"),),
        ),
        Row("large_cpu", f"warm blob {large}, 4 clients: CPU", "s/GB", False),
    ]


def _cold_rows(scale: Scale) -> list[Row]:
    one = f"cold layer {size_text(scale.large_bytes)}"
    image = f"cold image {_layers(scale)}"
    return [
        Row("cold_seconds", one, "s", False, (at_most(1.1, BEST),)),
        Row("cold_copies", f"{one}: upstream bytes", "x", False),
        Row("cold_cpu", f"{one}: CPU", "s/GB", False),
        Row("image_seconds", image, "s", False, (at_most(1.0, BEST),)),
        Row("image_copies", f"{image}: upstream bytes", "x", False),
    ]


def _herd_rows(scale: Scale) -> list[Row]:
    herd = f"{scale.herd_clients} clients, one cold {size_text(scale.herd_bytes)}"
    busy = f"{scale.busy_downloads} cold {size_text(scale.large_bytes)} at once"
    return [
        Row("herd_seconds", f"{herd}: all done", "s", False, (at_most(1.1, DIRECT),)),
        # What is asked again at a break, or of the last byte, is no second copy.
        Row("herd_copies", f"{herd}: upstream bytes", "x", False, (at_most(1.005),)),
        Row("herd_peak_mib", f"{herd}: peak RSS", "MiB", False, (at_most(150),)),
        Row("herd_anonymous_mib", f"{herd}: peak anonymous", "MiB", False),
        Row("busy_p99_ms", f"{busy}: p99 of small answers", "ms", False, (at_most(1.0, BEST),)),
        Row("busy_seconds", f"{busy}: all done", "s", False),
    ]


def _far_rows(scale: Scale) -> list[Row]:
    one = f"far layer {size_text(scale.herd_bytes)}"
    image = f"far image {_layers(scale)}"
    return [
        Row("far_layer_seconds", one, "s", False, (at_most(0.35, DIRECT),)),
        Row("far_layer_copies", f"{one}: upstream bytes", "x", False),
        Row("far_image_seconds", image, "s", False, (at_most(0.5, DIRECT),)),
        Row("far_image_copies", f"{image}: upstream bytes", "x", False),
    ]


def _layers(scale: Scale) -> str:
    return f"{scale.layers} x {size_text(scale.layer_bytes)}"
