"""Settings: one YAML file and `MIRROR_*` variables, checked whole, frozen."""

from mirror.config.load import ConfigurationError, Mistake, load
from mirror.config.model import Settings

__all__ = ["ConfigurationError", "Mistake", "Settings", "load"]
