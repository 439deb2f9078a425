"""Registry: which bundle is the champion, and which were before.

The pointer is one JSON document that is replaced as a whole, so a reader needs no lock; writers
take turns. It holds the sha256 of the champion's manifest, which makes it the root of trust of the
models folder. Whether a challenger deserves the place is decided elsewhere.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from nightfold.bundle import Bundle
from nightfold.errors import BundleRefused, DataRefused, UsageError, first_line
from nightfold.files import given, require_plain
from nightfold.manifest import MANIFEST, Digest, Manifest, VersionName, read_manifest, sign, verify
from nightfold.store import TEMPORARY, Store, make_folder, sha256_file, write_json, writing

FORMAT = 1
CHAMPION = "champion"


class Entry(BaseModel):
    """One change of the champion.

    Attributes
    ----------
    version : str
    manifest_sha256 : str
        Of the bundle's manifest at that time.
    promoted_at : datetime
        UTC.
    reason : str
        One sentence.
    action : {'promotion', 'rollback'}
    looks : tuple of str
        Digests of the evidence that was held against this champion's recipe, in order: every new
        piece of it makes a promotion harder to earn, see `nightfold.gate.required_probability`.
        A recipe that comes back has those of its last reign.
    recipe : str, optional
        Digest of the champion's candidate; unknown in entries of older versions.
    deposed : tuple of str
        Digests of the recipes that people have rolled back from: no night promotes one, until
        somebody does it by hand.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: VersionName
    manifest_sha256: Digest
    promoted_at: AwareDatetime
    reason: str
    action: Literal["promotion", "rollback"] = "promotion"
    looks: tuple[Digest, ...] = ()
    recipe: Digest | None = None
    deposed: tuple[Digest, ...] = ()


class Pointer(Entry):
    """``champion.json``: the champion's entry, and the earlier ones, oldest first."""

    format: Literal[1]
    history: tuple[Entry, ...] = ()

    @property
    def entry(self) -> Entry:
        """The champion's own entry."""
        return Entry(**self.model_dump(include=set(Entry.model_fields)))


@dataclass(frozen=True)
class Version:
    """A bundle in the models folder; `error` says why its manifest cannot be read."""

    version: str
    path: Path
    champion: bool
    manifest: Manifest | None
    error: str | None = None


class Registry:
    """The bundles of a store and the pointer to the champion.

    One object is for one thread; processes and threads take turns through `lock`.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self.folder = store.models
        self._locked = False

    @property
    def pointer_path(self) -> Path:
        """Where ``champion.json`` is."""
        return self.folder / f"{CHAMPION}.json"

    def champion(self) -> Entry | None:
        """The champion's entry; None if nothing was promoted yet.

        Raises
        ------
        BundleRefused
            If the pointer cannot be read or holds what no pointer holds.
        """
        pointer = self._pointer()
        return pointer and pointer.entry

    def history(self) -> list[Entry]:
        """Every entry so far, oldest first, the champion's last.

        Raises
        ------
        BundleRefused
            If the pointer cannot be read.
        """
        pointer = self._pointer()
        return [*pointer.history, pointer.entry] if pointer else []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers waiting; readers go on.

        Hold it around a decision and the promotion that follows from it. The kernel releases the
        lock when its holder dies, however it dies.
        """
        if self._locked:
            yield
            return
        make_folder(self.folder)
        file = self.folder / f".{CHAMPION}.lock"
        with writing(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._locked = True
            yield
        finally:
            self._locked = False
            os.close(descriptor)

    def promote(self, version: str, reason: str) -> Entry:
        """Make `version` the champion; nothing changes if it is already.

        Parameters
        ----------
        version : str
        reason : str
            One sentence for whoever asks why.

        Raises
        ------
        UsageError
            If there is no such version; the message lists those there are.
        BundleRefused
            If its bundle does not verify, or is not what it was when it was champion before, or
            the pointer cannot be read.
        """
        with self.lock():
            champion = self.champion()
            path = self._folder_of(version)
            digest = self._known_digest(version)
            if digest is None and (path / MANIFEST).is_file():
                digest = sha256_file(path / MANIFEST)
            manifest = verify(path, manifest_sha256=digest)
            if manifest.version != version:
                raise BundleRefused(
                    f"The bundle {path} says that it is version {manifest.version}: give the "
                    "folder its own name again."
                )
            if champion and (champion.version, champion.manifest_sha256) == (version, digest):
                return champion
            recipe = manifest.candidate_digest
            return self._point_to(
                Entry(
                    version=version,
                    manifest_sha256=str(digest),
                    promoted_at=datetime.now(UTC),
                    reason=reason,
                    looks=self._looks_at(version, recipe),
                    recipe=recipe,
                    deposed=tuple(r for r in champion.deposed if r != recipe) if champion else (),
                )
            )

    def _looks_at(self, version: str, recipe: str | None) -> tuple[str, ...]:
        """Looks at the last champion of the same recipe: they are not forgotten by a new fit."""
        for entry in reversed(self.history()):
            if entry.version == version or (entry.recipe == recipe and recipe is not None):
                return entry.looks
        return ()

    def look(self, version: str, evidence: str) -> int:
        """Count a look at a champion; the same evidence looked at again is no new look.

        Parameters
        ----------
        version : str
            The champion, or an earlier one: of several reigns the last counts.
        evidence : str
            sha256 of what is held against it.

        Returns
        -------
        int
            Which look at this champion it is, from 1.

        Raises
        ------
        UsageError
            If `version` never was champion.
        BundleRefused
            If the pointer cannot be read.
        """
        with self.lock():
            entries = self.history()
            reigns = [i for i, entry in enumerate(entries) if entry.version == version]
            if not reigns:
                raise UsageError(f"{version} never was champion, so there is no look to count.")
            looks = entries[reigns[-1]].looks
            if evidence not in looks:
                looks = (*looks, evidence)
                changed = entries[reigns[-1]].model_copy(update={"looks": looks})
                entries[reigns[-1]] = changed
                self._write(entries)
            return looks.index(evidence) + 1

    def rollback(self, version: str | None = None) -> Entry:
        """Give the place back to an earlier champion, after asking it the golden questions.

        Without `version`, to the one whose place the champion took; a second rollback goes one
        further back. No night promotes the recipe that was rolled back from again; `promote` does.
        Imports TensorFlow.

        Raises
        ------
        UsageError
            If there is no earlier champion, or `version` never was one.
        BundleRefused
            If its bundle is not what it was when it was champion, or its model no longer gives the
            answers it was sealed with.
        """
        with self.lock():
            entries = self.history()
            if not entries:
                raise UsageError("There is no champion yet, so nothing to roll back to.")
            earlier = {entry.version: entry for entry in entries[:-1]}
            earlier.pop(entries[-1].version, None)
            if version is None:
                version = _predecessor(entries)
            if version not in earlier:
                wanted = "before it" if version is None else f"called {version!r}"
                raise UsageError(
                    f"The champion is {entries[-1].version}, and there is no earlier champion "
                    f"{wanted}; earlier ones: {', '.join(earlier) or 'none'}."
                )
            old, left = earlier[version], entries[-1]
            Bundle.load(self.folder / version, manifest_sha256=old.manifest_sha256)
            deposed = dict.fromkeys((*left.deposed, *filter(None, [left.recipe])))
            deposed.pop(old.recipe or "", None)
            return self._point_to(
                Entry(
                    version=version,
                    manifest_sha256=old.manifest_sha256,
                    promoted_at=datetime.now(UTC),
                    reason=f"Rolled back from {left.version}.",
                    action="rollback",
                    looks=self._looks_at(version, old.recipe),
                    recipe=old.recipe,
                    deposed=tuple(deposed),
                )
            )

    def versions(self) -> list[Version]:
        """Every bundle with its manifest, oldest first; unreadable ones last, saying why.

        Only manifests are read; `verify` compares the files.
        """
        try:
            champion = self.champion()
        except BundleRefused:
            champion = None
        found = []
        for name in self._names():
            manifest, error = None, None
            try:
                manifest = read_manifest(self.folder / name)
            except BundleRefused as refused:
                error = str(refused)
            is_champion = champion is not None and champion.version == name
            found.append(Version(name, self.folder / name, is_champion, manifest, error))
        return sorted(found, key=_age)

    def resolve(self, model: str) -> Path:
        """Folder of the bundle that `model` names.

        Parameters
        ----------
        model : str
            ``champion``, a version, or the path of a bundle anywhere.

        Raises
        ------
        UsageError
            If there is none; the message lists the versions there are.
        BundleRefused
            If it is or was champion, and its manifest is not the one that was promoted.
        """
        path, digest = self._find(model)
        if digest is not None:
            read_manifest(path, manifest_sha256=digest)
        return path

    def verify(self, model: str, public_key: Path | None = None) -> Manifest:
        """`nightfold.manifest.verify` the bundle that `model` names, as `resolve` finds it.

        A version that is or was champion must have the manifest that was promoted.
        """
        path, digest = self._find(model)
        return verify(path, manifest_sha256=digest, public_key=public_key)

    def load(self, model: str) -> Bundle:
        """`Bundle.load` the bundle that `model` names, verified as by `verify`."""
        path, digest = self._find(model)
        return Bundle.load(path, manifest_sha256=digest)

    def sign(self, model: str) -> Manifest:
        """`nightfold.manifest.sign` the bundle that `model` names, verified first."""
        path, digest = self._find(model)
        return sign(path, manifest_sha256=digest)

    def _find(self, model: str) -> tuple[Path, str | None]:
        """Folder that `model` names, and the sha256 of its manifest if it ever was promoted."""
        if model == CHAMPION:
            entry = self.champion()
            if entry is None:
                raise UsageError(
                    f"No model was promoted under {self.folder} yet: run 'nightfold retrain', or "
                    f"name a version; there are: {self._known()}."
                )
            return self.folder / entry.version, entry.manifest_sha256
        path = given(model)
        if model not in self._names() and (path / MANIFEST).is_file():
            within = path.resolve().parent == self.folder.resolve()
            return path, self._known_digest(path.resolve().name) if within else None
        return self._folder_of(model), self._known_digest(model)

    def _known_digest(self, version: str) -> str | None:
        """sha256 of the manifest that `version` had when it was last promoted."""
        known = {entry.version: entry.manifest_sha256 for entry in self.history()}
        return known.get(version)

    def _pointer(self) -> Pointer | None:
        try:
            if self.pointer_path.exists():  # a pipe would let its reader wait for ever
                require_plain(self.pointer_path)
            content = self.pointer_path.read_bytes()
        except FileNotFoundError:
            return None
        except DataRefused as error:
            raise BundleRefused(f"The champion pointer {error}") from error
        except OSError as error:
            raise BundleRefused(
                f"The champion pointer {self.pointer_path} cannot be read ({error.strerror}): "
                "mend it."
            ) from error
        try:
            return Pointer.model_validate_json(content)
        except ValidationError as error:
            raise BundleRefused(
                f"The champion pointer {self.pointer_path} was altered ({first_line(error)}): "
                "restore it, or move it away and promote a version again."
            ) from error

    def _point_to(self, entry: Entry) -> Entry:
        self._write([*self.history(), entry])
        return entry

    def _write(self, entries: list[Entry]) -> None:
        pointer = Pointer(**dict(entries[-1]), format=FORMAT, history=tuple(entries[:-1]))
        write_json(self.pointer_path, pointer.model_dump(mode="json"))

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.is_dir() and not path.name.startswith(TEMPORARY)
        )

    def _folder_of(self, version: str) -> Path:
        if version not in self._names():
            raise UsageError(
                f"There is no model {version!r}: give 'champion', the path of a bundle, or one of "
                f"the versions under {self.folder}: {self._known()}."
            )
        return self.folder / version

    def _known(self) -> str:
        return ", ".join(self._names()) or "none"


def _predecessor(entries: list[Entry]) -> str | None:
    """Whose place the last entry's version took; rollbacks undo promotions, they add none."""
    line: list[str] = []
    for entry in entries:
        if entry.action == "rollback" and entry.version in line:
            del line[line.index(entry.version) + 1 :]
        else:
            line.append(entry.version)
    return line[-2] if len(line) > 1 else None


def _age(version: Version) -> tuple[bool, str, str]:
    created = version.manifest.created_at.isoformat() if version.manifest else ""
    return version.manifest is None, created, version.version
