"""A dataset to share, and its workspace: the folder with everything that holds real records.

A destination whose records are all synthetic can be given away as it lies: readers need its card, its manifests and the
shards. Staged records, the split ledger, reports, models, quarantine and proposals lie in a folder of their own, beside
it or where the user says. :class:`SharedStore` shows both as one dataset, so that no step has to know. A file in each
names the other: the workspace's has an id that a forged one in a destination would have to guess, and the ledger's key.
"""

import json
import posixpath
import secrets
import shutil
from pathlib import Path
from typing import Any, Literal

from prefect_augment.errors import ParameterError, StorageError
from prefect_augment.storage.manifests import list_versions, read_manifest
from prefect_augment.storage.store import Store, contains

POINTER = "_workspace.json"
SUFFIX = "-workspace"
_SHARED = ("_manifests", POINTER)
FORMAT = 1


def is_private(path: str) -> bool:
    """Tell whether an object belongs into the workspace.

    Examples
    --------
    >>> [is_private(p) for p in ("data/a.parquet", "_manifests/v00000001.json", "_splits/v00000001.parquet")]
    [False, False, True]
    """
    first = path.split("/")[0]
    return first.startswith("_") and first not in _SHARED


class SharedStore(Store):
    """A destination and its workspace as one store: paths that :func:`is_private` names lie in the workspace."""

    def __init__(self, destination: Store, workspace: Store, ledger_key: bytes) -> None:
        super().__init__(uri=destination.uri, fs=destination.fs, root=destination.root)
        self.destination = destination
        self.workspace = workspace
        self.ledger_key = ledger_key

    def full(self, path: str) -> str:
        """Return the file system's own name of ``path``, in the one folder or the other."""
        return self.workspace.full(path) if is_private(path) else super().full(path)

    def place(self, path: str) -> str:
        """Return the URI of ``path``."""
        return self.workspace.place(path) if is_private(path) else super().place(path)

    def _find(self, prefix: str, *, detail: bool) -> dict[str, dict[str, Any]]:
        own = {} if is_private(prefix) else self.destination._find(prefix, detail=detail)
        both = {path: info for path, info in own.items() if not is_private(path)}
        if is_private(prefix) or not prefix:
            apart = self.workspace._find(prefix, detail=detail)
            both |= {path: info for path, info in apart.items() if is_private(path)}
        return dict(sorted(both.items()))

    def abort_unfinished(self, before: float) -> int:
        """Abort multipart uploads to both folders."""
        return sum(store.abort_unfinished(before) for store in (self.destination, self.workspace))

    def check_writable(self, folder: str = "data") -> None:
        """Write, read, list and remove a small object in both folders."""
        self.workspace.check_writable()
        self.destination.check_writable(folder)


def with_workspace(store: Store, *, required: bool = True) -> Store:
    """Return the store together with its workspace, or as it is where there is none.

    ``required`` raises ParameterError for a copy whose workspace is not here; else its private objects are missing.
    """
    pointer = _read(store, POINTER)
    if pointer is None or isinstance(store, SharedStore):
        return store
    workspace = _beside(store, str(pointer.get("workspace", "")))
    marker = _read(workspace, POINTER)
    if marker is None or marker.get("id") != pointer.get("id"):
        if not required:
            return store
        raise ParameterError(
            f"{store.uri} is a dataset to share, and its workspace is not at {workspace.uri}; put it there, or choose "
            "another destination. A copy that was given away can be read and verified, and not continued."
        )
    return SharedStore(store, workspace, bytes.fromhex(str(marker["key"])))


def keep_apart(store: Store, where: str = "", *, only_synthetic: bool = True) -> Store:
    """Return the destination with a workspace: at ``where``, or beside it; made where there is none.

    Real records that an earlier run left in the destination are moved to the workspace. It can be called
    again after a kill at any point. Raises ParameterError if a published version has real records and
    ``only_synthetic``, or the workspace is another one's or lies inside the destination.
    """
    kind: Literal["synthetic", "any"] = "synthetic" if only_synthetic else "any"
    if only_synthetic:
        _refuse_real_versions(store)
    known = _read(store, POINTER)
    # Beside the destination, and relative to it, so that both can be moved together.
    beside = f"../{store.root.rsplit('/', 1)[-1]}{SUFFIX}"
    named = where or (str(known["workspace"]) if known else beside)
    workspace = _beside(store, named)
    if contains(store.uri, workspace.uri) or contains(workspace.uri, store.uri):
        raise ParameterError(
            f"the workspace {workspace.uri} and the destination {store.uri} lie inside one another; whoever shares "
            "the one would share the other. Name another folder in destination.workspace."
        )
    if list_versions(workspace):
        raise ParameterError(
            f"{workspace.uri} holds a published dataset; name an empty folder in destination.workspace."
        )
    marker = {
        "format": FORMAT,
        "id": secrets.token_hex(16),
        "key": secrets.token_hex(32),
        "destination": store.uri,
        "records": kind,
    }
    workspace.put_if_absent(POINTER, _json(marker))
    marker = _read(workspace, POINTER) or {}
    if known is not None and known.get("id") != marker.get("id"):
        raise ParameterError(
            f"{store.uri} has its workspace at {known.get('workspace')!r}, and {workspace.uri} is another one; drop "
            "destination.workspace, or choose another destination."
        )
    if known is None and marker.get("destination") != store.uri:
        raise ParameterError(
            f"{workspace.uri} is the workspace of {marker.get('destination')}; name another folder in "
            "destination.workspace."
        )
    if marker.get("records") != kind:
        raise ParameterError(
            f"{store.uri} is for {marker.get('records')} records since its first version, and publish.origins says "
            "otherwise; choose another destination."
        )
    _move(store, workspace, {"format": FORMAT, "id": marker["id"], "workspace": named})
    return with_workspace(store)


def private_objects(store: Store) -> list[str]:
    """Objects in a destination that belong into a workspace."""
    return [path for path in store.list() if is_private(path)]


def _refuse_real_versions(store: Store) -> None:
    for version in list_versions(store):
        origins = {shard.origin for shard in read_manifest(store, version).shards} - {"synthetic"}
        if origins:
            raise ParameterError(
                f"version {version} of {store.uri} has {', '.join(sorted(origins))} records, and publish.origins lets "
                "only synthetic ones out: what is shared must lie in a folder of its own. Choose another destination."
            )


def _move(store: Store, workspace: Store, pointer: dict[str, Any]) -> None:
    """Copy what is private, make the pointer visible, and only then remove it from the destination."""
    left = private_objects(store)
    for path in left:
        workspace.put_if_absent(path, store.read(path))
    store.put_if_absent(POINTER, _json(pointer))
    for path in left:
        store.delete(path)
    if store.is_local:
        for folder in Path(store.root).glob("_*"):
            if folder.is_dir() and not folder.is_symlink() and is_private(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _beside(store: Store, named: str) -> Store:
    """Open a workspace on the destination's own file system, by its URI or relative to the destination."""
    if named.startswith("../") and "/" not in named[3:]:
        parent, _, _ = store.root.rpartition("/")
        uri = f"{store.uri.rstrip('/').rpartition('/')[0]}/{named[3:]}"
        return Store(uri=uri, fs=store.fs, root=f"{parent}/{named[3:]}")
    protocol = store.uri.partition("://")[0] if "://" in store.uri else ""
    if (named.partition("://")[0] if "://" in named else "") != protocol or not named:
        raise ParameterError(
            f"the workspace {named!r} is on another file system than {store.uri}; name a folder on the same one in "
            "destination.workspace."
        )
    if not protocol:
        named = str(Path(named).expanduser().resolve())
    root = posixpath.normpath(str(store.fs._strip_protocol(named))).rstrip("/")
    return Store(uri=named, fs=store.fs, root=root)


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()


def _read(store: Store, path: str) -> dict[str, Any] | None:
    data = store.read_if_there(path)
    if data is None:
        return None
    try:
        fields = json.loads(data)
    except ValueError as exc:
        raise StorageError(
            f"{store.uri}/{path} is not JSON ({exc}); restore it.", path=path
        ) from exc
    return fields if isinstance(fields, dict) else {}
