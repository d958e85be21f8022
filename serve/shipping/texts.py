"""The text files of a shipment, from the templates beside this module."""

from __future__ import annotations

import base64
import math
import re
import string
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from serve.access.key_file import read_keys
from serve.settings import Settings
from serve.shipping.memory import Memory
from serve.shipping.requirements import PYTHON

__all__ = ["Sizing", "compose"]

_PORT = 3000
_USER = 10001
"""Of the container's process; any that is not 0 and not a user of the host."""
_DRAIN_SECONDS = 5
"""A pod that is told to end still gets requests until every node of the cluster has heard of it."""
_SLACK_SECONDS = 5
"""No request takes longer than `timeout_seconds`; this is for writing the last answers and ending the processes."""

_TMP_MIB = 32
"""Measured: 37 kB, also while bodies of 60 MB are received, which stay in memory."""

_TEMPLATES = {
    ".dockerignore": "dockerignore",
    "Containerfile": "Containerfile",
    "README.md": "README.md",
    "bentofile.yaml": "bentofile.yaml",
    "kserve.yaml": "kserve.yaml",
    "kubernetes.yaml": "kubernetes.yaml",
}

_KEYS_FOLDER = "/etc/pocketzoo"
_WHOLE_LINE = re.compile(r"(?m)^( *)\$(\w+)\n")


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """What a container is given."""

    cores: int
    memory: Memory
    sizes: str
    """Lines for people."""


def compose(
    *,
    name: str,
    image: str,
    replicas: int,
    models: str,
    engine: str,
    hashes: bool,
    sizing: Sizing,
    keys_file: Path | None,
) -> dict[str, str]:
    """Path in the folder -> text, of the container file, the manifests and the rest.

    Args:
        name: of the objects in the cluster.
        image: as `docker push` takes it.
        replicas: the least of them.
        models: one line per model, for people.
        engine: what computes, as POCKETZOO_ENGINE takes it.
        hashes: whether the requirements have hashes.
        sizing: what a container is given.
        keys_file: API keys, for a Secret.

    Raises:
        UsageError: a file of keys that cannot be read.
    """
    graceful = math.ceil(Settings().timeout_seconds) + _SLACK_SECONDS
    values: dict[str, object] = {
        "name": name,
        "image": image,
        "models": models,
        "engine": engine,
        "pip_options": "--require-hashes " if hashes else "",
        "cores": sizing.cores,
        "cpu_request": f"{500 * sizing.cores}m",
        "decode_bytes": sizing.memory.decoding,
        "loaded_bytes": sizing.memory.loaded,
        "memory_request": sizing.memory.request >> 20,
        "memory_limit": sizing.memory.limit >> 20,
        "tmp_limit": _TMP_MIB,
        "sizes": sizing.sizes,
        "python": PYTHON,
        "port": _PORT,
        "user": _USER,
        "replicas": replicas,
        "most_replicas": 4 * replicas,
        "drain_seconds": _DRAIN_SECONDS,
        "graceful_seconds": graceful,
        "termination_seconds": _DRAIN_SECONDS + graceful + _SLACK_SECONDS,
        "apply_keys": "" if keys_file is None else "-f secret.yaml ",
    }
    values |= _keys(name, keys_file)
    texts = {target: _fill(template, values) for target, template in _TEMPLATES.items()}
    if keys_file is not None:
        texts["secret.yaml"] = _fill("secret.yaml", values)
    return texts


def _keys(name: str, path: Path | None) -> dict[str, object]:
    """The lines that bring the keys into a container: for its environment, its mounts and the pod's volumes."""
    if path is None:
        return dict.fromkeys(("keys_env", "keys_mount", "keys_volume"), "")
    read_keys(path)
    return {
        "keys": base64.b64encode(path.read_bytes()).decode("ascii"),
        "keys_env": f"- name: POCKETZOO_KEYS_FILE\n  value: {_KEYS_FOLDER}/keys.toml",
        "keys_mount": f"- name: keys\n  mountPath: {_KEYS_FOLDER}\n  readOnly: true",
        "keys_volume": f'- name: keys\n  secret:\n    secretName: "{name}-keys"',
    }


def _fill(template: str, values: Mapping[str, object]) -> str:
    """The template with its values; one that has a line to itself may have several lines, or none."""
    text = (files("serve.shipping") / "templates" / template).read_text(encoding="utf-8")
    text = _WHOLE_LINE.sub(lambda found: _block(str(values[found[2]]), found[1]), text)
    return string.Template(text).substitute(values)


def _block(value: str, indentation: str) -> str:
    return textwrap.indent(f"{value}\n", indentation) if value else ""
