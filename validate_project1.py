"""The hook under the name that validators import."""

from zoo.validate import load_my_models

__all__ = ["load_my_models"]
