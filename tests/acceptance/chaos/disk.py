"""A small disk that fills up or turns read-only, made without any rights of an administrator.

It is a tmpfs in a mount namespace of its own; a process that sleeps keeps the namespace, commands
are started inside, and files are looked at through that process's ``/proc/PID/root``.
"""

import subprocess
from pathlib import Path


class Disk:
    """A tmpfs of `megabytes` at `folder`, seen by those that are started with `enter` only."""

    def __init__(self, folder: Path, megabytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        script = f"mount -t tmpfs -o size={megabytes}m none {folder} && echo ready && sleep 3600"
        self.keeper = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.answer = self.keeper.stdout.readline().strip()
        self.inside = folder
        self.enter = [
            *("nsenter", "--target", str(self.keeper.pid)),
            *("--user", "--mount", "--preserve-credentials", "--"),
        ]

    @property
    def possible(self):
        """Whether this system lets a user mount a tmpfs."""
        return self.answer == "ready"

    def seen(self, path: Path) -> Path:
        """Where a path on the disk is for a process outside."""
        return Path(f"/proc/{self.keeper.pid}/root{path}")

    def run(self, *command):
        subprocess.run([*self.enter, *map(str, command)], check=True)

    def empty(self):
        self.seen(self.inside / "ballast").unlink(missing_ok=True)

    def end(self):
        self.keeper.terminate()
        self.keeper.wait()
        self.keeper.stdout.close()
