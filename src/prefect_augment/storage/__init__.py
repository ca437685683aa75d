"""Object stores, and work in progress on them."""

from prefect_augment.storage.leases import (
    FOLDER as FOLDER,
    drop_lease as drop_lease,
    lease as lease,
    modified_at as modified_at,
    store_time as store_time,
)
from prefect_augment.storage.local import Draft as Draft
from prefect_augment.storage.manifests import (
    commit as commit,
    committed as committed,
    find_commit as find_commit,
    latest_version as latest_version,
    list_versions as list_versions,
    manifest_path as manifest_path,
    probe_exclusive as probe_exclusive,
    read_manifest as read_manifest,
)
from prefect_augment.storage.staging import Stage as Stage, read_result as read_result
from prefect_augment.storage.store import (
    Store as Store,
    contains as contains,
    open_store as open_store,
    sha256_hex as sha256_hex,
)
from prefect_augment.storage.workspace import (
    SharedStore as SharedStore,
    keep_apart as keep_apart,
    private_objects as private_objects,
    with_workspace as with_workspace,
)
