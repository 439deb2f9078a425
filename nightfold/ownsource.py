"""Source files of the user's own networks: which they are, and a digest of what they say.

They are found by reading import statements: nothing is imported, so the flow can name results
without loading Keras. What a module imports by other means, or reads from other files, is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import all_suffixes
from pathlib import Path

from nightfold.store import sha256_json

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_OURS = frozenset({"nightfold", "tasks", "flows"})


def digest_of(module: str) -> str:
    """Digest of all source that an import of `module` runs; '' if there is no such module.

    Of a single file it is the file's sha256.
    """
    files = files_of(module)
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    if len(digests) < 2:
        return next(iter(digests.values()), "")
    return sha256_json(digests)


def files_of(module: str) -> dict[str, Path]:
    """Files of the user's own that an import of `module` runs, by the names of their modules.

    The packages around a module belong to it. What is installed does not, for it has versions,
    unless it is the package of `module` itself.
    """
    own = module.partition(".")[0]
    files: dict[str, Path] = {}
    due, seen = [module], set()
    while due:
        name = due.pop()
        if name in seen:
            continue
        seen.add(name)
        if parent := name.rpartition(".")[0]:
            due.append(parent)
        file, is_package = _located(name, own)
        if file is not None:
            files[name] = file
            due += _imports(file, name if is_package else parent)
    return dict(sorted(files.items()))


def _located(module: str, own: str) -> tuple[Path | None, bool]:
    """The file of a module, None for one that is not the user's or has none; if it is a package."""
    top, *rest = module.split(".")
    if top in _OURS or top in sys.stdlib_module_names:
        return None, False
    try:
        spec = importlib.util.find_spec(top)
    except Exception:  # What stands in for a module may raise anything.
        spec = None
    if spec is None:
        return None, False
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if top != own and any(_INSTALLED & set(p.parts) for p in (*folders, *filter(None, [file]))):
        return None, False
    for part in rest:
        file, folders = _inside(folders, part)
    if file is not None and not file.is_file():
        file = None
    return file, bool(folders)


def _inside(folders: Iterable[Path], name: str) -> tuple[Path | None, list[Path]]:
    """File of a module in `folders`, and where its own modules are if it is a package."""
    folders = list(folders)
    for folder in folders:
        if (init := folder / name / "__init__.py").is_file():
            return init, [init.parent]
        for suffix in all_suffixes():
            if (file := folder / f"{name}{suffix}").is_file():
                return file, []
    return None, [folder / name for folder in folders if (folder / name).is_dir()]


def _imports(file: Path, package: str) -> Iterator[str]:
    """Names that the import statements of a file may mean; not all need be modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                with suppress(ImportError):  # beyond the outermost package
                    base = importlib.util.resolve_name("." * node.level + base, package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names if base))
