"""Object stores, and work in progress on them."""

from prefect_augment.storage.leases import FOLDER, drop_lease, lease, modified_at, store_time
from prefect_augment.storage.manifests import (
    commit,
    commit_next,
    committed,
    find_commit,
    latest_version,
    list_versions,
    manifest_path,
    probe_exclusive,
    read_manifest,
)
from prefect_augment.storage.staging import Stage, read_result
from prefect_augment.storage.store import Draft, Store, contains, open_store, sha256_hex
from prefect_augment.storage.workspace import (
    SharedStore,
    keep_apart,
    open_published,
    private_objects,
    with_workspace,
)

__all__ = [
    "FOLDER",
    "Draft",
    "SharedStore",
    "Stage",
    "Store",
    "commit",
    "commit_next",
    "committed",
    "contains",
    "drop_lease",
    "find_commit",
    "keep_apart",
    "latest_version",
    "lease",
    "list_versions",
    "manifest_path",
    "modified_at",
    "open_published",
    "open_store",
    "private_objects",
    "probe_exclusive",
    "read_manifest",
    "read_result",
    "sha256_hex",
    "store_time",
    "with_workspace",
]
