"""Modules of the user's own: imported so that no other network of the process is another for it."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from nightfold import backend
from nightfold.draws import own_draws
from nightfold.errors import UsageError
from nightfold.ownsource import digest_of, files_of


def import_trusted() -> tuple[str, ...]:
    """Import the modules whose code sealed models may use; their names.

    They are named in ``NIGHTFOLD_MODULES``, separated by commas. A bundle says which classes it
    needs, but never what is imported for it: that is the word of whoever runs the command.

    Raises
    ------
    UsageError
        If one of them cannot be imported.
    """
    names = tuple(filter(None, os.environ.get("NIGHTFOLD_MODULES", "").replace(",", " ").split()))
    for name in names:
        try:
            imported(name)
        except UsageError:
            raise
        except Exception as error:  # The module is the user's, and may raise anything.
            raise UsageError(
                f"The module {name!r} of NIGHTFOLD_MODULES cannot be imported ({fault_of(error)}): "
                "check its spelling, its code, and that its folder is on PYTHONPATH."
            ) from error
    return names


_SOURCES: dict[str, str] = {}
"""Digests of the sources of what `imported` has imported."""


def imported(name: str) -> ModuleType:
    """A user's module, unless its import changes what other networks of the process are.

    Folds would differ by worker, and by what the worker has trained before. What Keras draws while
    a module is imported, such as the seed of an initializer, is the same in every process.

    Raises
    ------
    UsageError
        If the module sets something for all of Keras, or registers a class under the name of one
        that another module has registered; or if its source is edited meanwhile.
    Exception
        Whatever the module raises.
    """
    if name in sys.modules:
        return importlib.import_module(name)
    backend.load()  # before the module does: quietly, and with the backend that is trained on
    settings, classes, source = _keras_settings(), _registered_classes(), digest_of(name)
    with own_draws(0):
        module = importlib.import_module(name)
    try:
        _require_same_settings(name, settings)
        _require_same_classes(name, classes)
        if digest_of(name) != source:
            raise UsageError(f"The module {name!r} was edited while it was imported: run again.")
    except UsageError:
        forget(name)  # so that the next import finds the same
        raise
    _SOURCES[name] = source
    return module


def imported_from(name: str) -> str | None:
    """Digest of the source that `imported` has a module from; None if it has not imported it."""
    return _SOURCES.get(name) if name in sys.modules else None


def forget(name: str) -> None:
    """Let the next import of a module read its source, and that of all the user's it imports."""
    importlib.invalidate_caches()
    for module in (name, *files_of(name)):
        sys.modules.pop(module, None)


def fault_of(error: Exception) -> str:
    """An error of an import in a few words."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _keras_settings() -> tuple[str, str, str, float]:
    """Type of floats, dtype policy, order of axes and epsilon; Keras's own if it is not there."""
    if "keras" not in sys.modules:
        return "float32", "float32", "channels_last", 1e-7
    from keras import config

    return (
        config.floatx(),
        config.dtype_policy().name,
        config.image_data_format(),
        config.epsilon(),
    )


def _require_same_settings(name: str, before: tuple[str, str, str, float]) -> None:
    after = _keras_settings()
    if after == before:
        return
    from keras import config

    floatx, policy, order, epsilon = before
    config.set_floatx(floatx)
    config.set_dtype_policy(policy)
    config.set_image_data_format(order)
    config.set_epsilon(epsilon)
    changed = next(str(new) for old, new in zip(before, after, strict=True) if old != new)
    raise UsageError(
        f"The module {name!r} sets {changed} for all of Keras when it is imported: set it "
        "within the function that makes the network."
    )


def _registered_classes() -> dict[str, Any]:
    """What a saved model may name, by its name."""
    if "keras" not in sys.modules:
        return {}
    import keras

    return dict(keras.saving.get_custom_objects())


def _require_same_classes(name: str, before: dict[str, Any]) -> None:
    after = _registered_classes()
    for key, first in before.items():
        names = [getattr(each, "__module__", None) for each in (first, after.get(key, first))]
        if names[0] == names[1]:  # the same, or imported anew
            continue
        import keras

        keras.saving.get_custom_objects()[key] = first
        raise UsageError(
            f"The modules {names[0]!r} and {name!r} both register {key!r}, and a saved "
            "model could not tell which it needs: register one of them by another name, as in "
            f'register_keras_serializable("{name}").'
        )
