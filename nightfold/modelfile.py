"""Model file: what a ``model.keras`` may hold, looked through before Keras opens it.

Keras's safe mode refuses Python code in a file, but its layers can still load other models, read
files by name or be any class that Keras has ever had. So nothing is refused by a list of dangers:
a file may hold three uncompressed members, classes of the few namespaces that networks are built
of, and plain arrays. Nothing is deserialised here, and neither Keras nor TensorFlow imported.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MEMBERS = frozenset({CONFIG, METADATA, WEIGHTS})
MAX_CONFIG_BYTES = 64 * 2**20

REFUSED_LAYERS = frozenset(
    {
        "FlaxLayer",
        "IntegerLookup",
        "JaxLayer",
        "Lambda",
        "StringLookup",
        "TFSMLayer",
        "TextVectorization",
        "TorchModuleWrapper",
    }
)
"""Layers of `keras.layers` that hold code, or read the files that their configuration names."""

_CLASSES = re.compile(
    r"keras\.layers|keras\.dtype_policies|keras\.(initializers|regularizers|constraints)"
    r"|keras\.src\.ops\.(core|image|linalg|math|nn|numpy)"
)
_NAMED = {
    ("keras", "DTypePolicy"),
    ("keras", "Functional"),
    ("keras", "Model"),
    ("keras", "Sequential"),
    ("keras.src.models.functional", "Functional"),
    ("keras.quantizers", "AbsMaxQuantizer"),
    ("keras.quantizers", "Float8QuantizationConfig"),
    ("keras.quantizers", "Int4QuantizationConfig"),
    ("keras.quantizers", "Int8QuantizationConfig"),
}
_FUNCTIONS = {"builtins", "keras.activations", "keras.initializers", "keras.regularizers"}
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}


class Unsafe(ValueError):
    """The file holds what no model needs; the message says what."""


def inspect(content: bytes) -> frozenset[str]:
    """Look through the bytes of a ``model.keras``.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    frozenset of str
        Names under which the model uses classes and functions that are not Keras's own. They are
        code outside of the file; whether they may be used is for the caller to decide.

    Raises
    ------
    Unsafe
        If a member is unknown, compressed or there twice; a class or function is not one that
        networks are built of; or the weights are more than plain arrays inside the file.
    """
    members = stored_members(content, MEMBERS)
    if len(members[CONFIG]) > MAX_CONFIG_BYTES:
        raise Unsafe(f"its {CONFIG} has {len(members[CONFIG]):,} bytes")
    try:
        config = json.loads(members[CONFIG])
        if not isinstance(config, dict):
            raise Unsafe(f"its {CONFIG} is no object")
        # Keras drops it as well, since the model is loaded without being compiled.
        config.pop("compile_config", None)
        own = frozenset(_own_names(config))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Unsafe):
            raise
        raise Unsafe(f"its {CONFIG} cannot be read ({error})") from error
    _inspect_weights(members[WEIGHTS])
    return own


def stored_members(content: bytes, names: Collection[str]) -> Mapping[str, bytes]:
    """The members of a zip archive that holds `names`, nothing else, and nothing compressed.

    What is not compressed is no larger in memory than in the file.

    Raises
    ------
    Unsafe
        If the archive is another.

    Examples
    --------
    >>> with zipfile.ZipFile(archive := io.BytesIO(), "w") as writer:
    ...     writer.writestr("a", "one")
    >>> stored_members(archive.getvalue(), {"a"})
    {'a': b'one'}
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            found = [info.filename for info in infos]
            if sorted(found) != sorted(names):
                raise Unsafe(
                    f"it holds {_listed(found)}, and should hold {_listed(sorted(names))}, "
                    "each once"
                )
            if any(
                info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size
                for info in infos
            ):
                raise Unsafe("its members are compressed")
            if sum(info.file_size for info in infos) > len(content):
                raise Unsafe("its members overlap")
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Unsafe(f"it is no sound zip archive ({error})") from error


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:60]) for name in names[:5]) or "nothing"


def _own_names(value: Any) -> Iterator[str]:
    """Walk a configuration; refuse what is not known, yield names that are not Keras's."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield from _judge(value)
        for inner in value.values():
            yield from _own_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _own_names(inner)


def _judge(described: dict[str, Any]) -> Iterator[str]:
    """Accept one object of a configuration, or refuse it."""
    name, module = described["class_name"], described.get("module")
    registered = described.get("registered_name")
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise Unsafe(f"its {CONFIG} has an object without a class")
    if name in _VALUES:
        return
    if name.startswith("__"):
        raise Unsafe(f"it holds {name}, which is code")
    if name == "function":
        function = described.get("config")
        if module in _FUNCTIONS and registered in (None, "function", function):
            return
    elif module in ("keras.layers", "keras") and name in REFUSED_LAYERS:
        raise Unsafe(f"it holds the layer {name}, which runs code or reads other files")
    elif _of_keras(module, name) and registered in (None, name):
        return
    # Keras writes a class of somebody's own with the name it is registered under; a name that
    # Keras's own modules go by is somebody's attempt to have the one taken for the other.
    if isinstance(registered, str) and not (module or "").startswith("keras"):
        yield registered
        return
    raise Unsafe(f"it holds {module}.{name}, which no network is built of")


def _of_keras(module: str | None, name: str) -> bool:
    if (module, name) in _NAMED:
        return True
    return bool(module and _CLASSES.fullmatch(module) and re.fullmatch(r"[A-Z]\w*", name))


def _inspect_weights(content: bytes) -> None:
    """Accept only groups and plain arrays, each once and with all its bytes in this file.

    HDF5 can also link to other files, keep an array's bytes in them, and declare arrays far
    larger than what is stored.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            seen: set[Any] = set()
            groups = [file]
            while groups:
                group = groups.pop()
                for name in group:
                    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                        raise Unsafe(f"its weights have a link at {group.name}/{name}")
                    entry = group[name]
                    if entry.id in seen or len(seen) > 1_000_000:
                        raise Unsafe(f"its weights hold {entry.name} more than once")
                    seen.add(entry.id)
                    if isinstance(entry, h5py.Group):
                        groups.append(entry)
                    else:
                        _inspect_array(entry)
    except Unsafe:
        raise
    except Exception as error:  # h5py raises whatever the library reports of a damaged file.
        raise Unsafe(f"its weights cannot be read ({error})") from error


def _inspect_array(entry: Any) -> None:
    import h5py

    if not isinstance(entry, h5py.Dataset) or entry.dtype.kind not in "biufV":
        raise Unsafe(f"its weights hold {entry.name}, which is no array of numbers")
    if entry.dtype.hasobject or entry.dtype.fields or entry.dtype.itemsize > 8:
        raise Unsafe(f"its weights hold {entry.name}, which is no array of numbers")
    if entry.external or entry.is_virtual:
        raise Unsafe(f"its weights keep {entry.name} in another file")
    if entry.id.get_storage_size() != entry.nbytes:
        raise Unsafe(
            f"its weights declare {entry.nbytes:,} bytes of {entry.name} and store "
            f"{entry.id.get_storage_size():,}"
        )
