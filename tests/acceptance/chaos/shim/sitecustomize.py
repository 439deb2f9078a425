"""Kills the process that imports it before a chosen write, and notes every write and epoch.

Python imports a module of this name by itself when it starts, so the flow and its workers load it
from ``PYTHONPATH`` without knowing. It does nothing unless ``CHAOS_LEDGER`` is set.

A write is named by who does it, what it does and to which file: ``worker rename
folds/1a2b.../checkpoint.npz``. ``CHAOS_AT`` is such a name and which occurrence is meant, from now
on; ``CHAOS_HOW`` says what happens then: ``self`` kills the process, ``group`` all processes of its
group, ``torn`` halves the file before, as if only a part of it had reached the disk. Anything else
is a command for the shell, and the write goes on behind it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from importlib.machinery import PathFinder
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATH_OF = {
    "os.rename": 1,  # where it goes to
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.truncate": 0,
}


class Watch:
    """The writes of this process below the watched folders."""

    def __init__(self):
        self.ledger = os.open(os.environ["CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.roots = [os.path.realpath(root) for root in os.environ["CHAOS_ROOTS"].split(":")]
        self.role = "worker" if "forkserver" in " ".join(sys.orig_argv) else "flow"
        self.target, _, number = os.environ.get("CHAOS_AT", "").rpartition("#")
        self.number = int(number or 0)
        self.seen = Counter()
        self.restored = {}

    def note(self, **facts):
        os.write(self.ledger, (json.dumps({"pid": os.getpid(), **facts}) + "\n").encode())

    def audit(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self.write("open", path)
        elif event in PATH_OF:
            self.write(event.removeprefix("os."), arguments[PATH_OF[event]])

    def write(self, what, path):
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 (what is not a path)
            except OSError:
                return
        path = os.fsdecode(path)
        for root in self.roots:
            if path.startswith(root):
                self.met(f"{self.role} {what} {named(os.path.relpath(path, root))}", path)

    def met(self, name, path):
        self.seen[name] += 1
        self.note(write=name)
        if self.seen[name] == self.number and fnmatch(name, self.target):
            self.kill(path)

    def kill(self, path):
        how = os.environ["CHAOS_HOW"]
        try:
            # Once only: the pool that follows a killed worker comes to the same write again.
            os.close(os.open(os.environ["CHAOS_MARK"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if how not in ("self", "group", "torn"):
            subprocess.run(how, shell=True, check=False, stderr=subprocess.DEVNULL)
            return
        if how == "torn" and Path(path).is_file():
            os.truncate(path, Path(path).stat().st_size // 2)
        if how == "group":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def count_epochs(self, training):
        """Note when an epoch begins, and of which training."""
        restore, run_epoch = training._Training.restore, training._Training.run_epoch

        def restored(this, path):
            self.restored[id(this)] = f"{path.parent.name}/{path.name}"
            return restore(this, path)

        def begun(this, *rows):
            self.note(training=self.restored[id(this)], epoch=len(this.history) + 1)
            return run_epoch(this, *rows)

        training._Training.restore, training._Training.run_epoch = restored, begun


def named(path):
    """A path as it would be in another folder and another run."""
    path = re.sub(r"\.part-[0-9a-f]+-", ".part-", path)
    path = re.sub(r"\d{8}-\d{6}-[0-9a-f]{6}", "night", path)  # a run that was not given a name
    return re.sub(r"^([0-9a-f]{64}-\w+)-.*", r"record/\1", path)  # Prefect's, of a cached result


class AfterImport:
    """Finds ``nightfold.training`` where it is, and lets the watch in once it is loaded."""

    def __init__(self, watch):
        self.watch = watch

    def find_spec(self, name, path=None, target=None):
        if name != "nightfold.training":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def loaded(module):
            load(module)
            self.watch.count_epochs(module)

        spec.loader.exec_module = loaded
        return spec


def start():
    watch = Watch()
    fsync = os.fsync

    def flushed(descriptor):
        watch.write("fsync", descriptor if isinstance(descriptor, int) else descriptor.fileno())
        return fsync(descriptor)

    os.fsync = flushed
    sys.addaudithook(watch.audit)
    sys.meta_path.insert(0, AfterImport(watch))


# A Prefect server that is started from here is watched by nobody: it has files of its own.
if "CHAOS_LEDGER" in os.environ and "flows.server" not in sys.orig_argv:
    start()
