"""Runs the instructions of our own Containerfile without a container: in a folder, with an empty environment."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = ("FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD")

_ASSIGNMENT = re.compile(r"(\w+)=(\S*)")


def read_instructions(text: str) -> list[tuple[str, str]]:
    """(name, arguments) of each instruction; comments and continued lines as in the Dockerfile reference."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


@dataclass
class Container:
    """A folder that stands for the container's root, and an environment that stands for its image's Python."""

    context: Path
    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    healthcheck: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def cwd(self) -> Path:
        return self.root / self.workdir.lstrip("/")

    def build(self) -> None:
        for name, arguments in read_instructions((self.context / "Containerfile").read_text()):
            getattr(self, f"_{name.lower()}")(arguments)

    def _from(self, image: str) -> None:
        assert image == f"--platform=linux/amd64 python:{sys.version_info.major}.{sys.version_info.minor}-slim"
        subprocess.run([sys.executable, "-m", "venv", self.root / "venv"], check=True)
        (self.root / "tmp").mkdir()
        self.environment = {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": "/nonexistent"}

    def _env(self, arguments: str) -> None:
        for name, value in _ASSIGNMENT.findall(arguments):
            self.environment[name] = f"{self.root}{value}" if value.startswith("/") else value

    def _workdir(self, path: str) -> None:
        self.workdir = path
        self.cwd.mkdir(parents=True)

    def _copy(self, arguments: str) -> None:
        source, target = arguments.split()
        if (self.context / source).is_dir():
            shutil.copytree(self.context / source, self.cwd / target)
        else:
            shutil.copy(self.context / source, self.cwd / target)

    def _run(self, command: str) -> None:
        done = subprocess.run(["/bin/sh", "-c", command], cwd=self.cwd, env=self.environment, capture_output=True)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()[-3000:]

    def _user(self, user: str) -> None:
        self.user = user

    def _expose(self, port: str) -> None:
        assert port.isdigit()

    def _stopsignal(self, signal: str) -> None:
        assert signal == "SIGTERM"

    def _healthcheck(self, arguments: str) -> None:
        self.healthcheck = json.loads(arguments.partition("CMD ")[2])

    def _cmd(self, arguments: str) -> None:
        self.command = json.loads(arguments)
