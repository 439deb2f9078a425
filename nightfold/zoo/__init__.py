"""Architectures by name, one file per family.

An architecture is a function ``build(images, n_classes) -> probabilities``: Keras tensors in and
out, images already scaled, shape (batch, height, width, channels). Decorate it with
`architecture` in any file of this folder and it is known by its name; a user's own is named
``module:function`` and needs no registration.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightfold.errors import UsageError
from nightfold.modules import fault_of, forget, imported, imported_from
from nightfold.ownsource import digest_of
from nightfold.store import sha256_file

Build = Callable[[Any, int], Any]

_ARCHITECTURES: dict[str, Build] = {}
_IMPORTING = threading.Lock()


def architecture(build: Build) -> Build:
    """Register `build` as the architecture of its name."""
    _ARCHITECTURES[build.__name__] = build
    return build


def architectures() -> dict[str, Build]:
    """All registered architectures; imports every file of the zoo (Keras stays unimported)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_ARCHITECTURES.items()))


def is_own(name: str) -> bool:
    """Whether `name` is a ``module:function`` of the user's."""
    return ":" in name


def find(name: str) -> Build:
    """The architecture called `name`, or the user's ``module:function``.

    Raises
    ------
    UsageError
        If there is none; the message lists those there are.
    """
    module_name, colon, function = name.partition(":")
    if not colon:
        known = architectures()
        if name in known:
            return known[name]
        raise UsageError(
            f"There is no architecture {name!r}; choose one of {', '.join(known)}, "
            "or name your own as module:function."
        )
    try:
        build = getattr(imported(module_name), function)
    except UsageError:
        raise
    except Exception as error:  # The module is the user's, and may raise anything.
        raise UsageError(
            f"The architecture {name!r} cannot be imported ({fault_of(error)}): check its "
            "spelling, its code, and that its folder is on PYTHONPATH."
        ) from error
    if not callable(build):
        raise UsageError(f"The architecture {name!r} is not a function.")
    return build  # type: ignore[no-any-return]


def fingerprint(name: str) -> str:
    """Digest of the source of an architecture; '' if there is none.

    It belongs to the key of every result made with the architecture: the same name may be another
    network tomorrow. Of a network of the user's own it covers all that its module imports of theirs
    (`nightfold.ownsource`), of another the file that it is in.
    """
    module, colon, _ = name.partition(":")
    if colon:
        return digest_of(module)
    build = architectures().get(name)
    return sha256_file(Path(inspect.getfile(build))) if build else ""


def require_source(name: str, digest: str) -> None:
    """Have an architecture imported from the source with that `fingerprint`, anew if need be.

    A result is named by its source when a night begins; a process that lives on may have imported
    another, and whoever edits the file meanwhile makes it another for those that come later.

    Raises
    ------
    UsageError
        If its source is another by now, or it cannot be imported.
    """
    if not is_own(name):
        return
    with _IMPORTING:  # threads train side by side
        module = name.partition(":")[0]
        if imported_from(module) != digest:
            forget(module)
            find(name)
        if imported_from(module) != digest:
            raise UsageError(
                f"The source of the architecture {name!r} was edited after this run began: run the "
                "same command again."
            )
