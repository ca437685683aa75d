"""What ``doctor`` asks of Prefect: its API, work pools and workers, and a storage block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect import __version__ as prefect_version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from prefect_augment.errors import ParameterError
from prefect_augment.stages.doctor import Check, Status
from prefect_augment.tasks._runtime import storage_options

__all__ = ["Block", "check_prefect", "load_block"]

START = "start one with `prefect server start`, then `prefect config set PREFECT_API_URL=…/api`."
POOL = "local-process"


@dataclass
class Block:
    """A storage block that was looked for, and what it holds; never printed."""

    options: dict[str, Any] = field(default_factory=dict, repr=False)
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it was asked for and cannot be used."""
        return any(check.status == "problem" for check in self.checks)


def check_prefect() -> list[Check]:
    """Look at the API, and where one is set at its work pools and workers."""
    settings = get_current_settings()
    url = settings.api.url
    if not url:
        if settings.server.ephemeral.enabled:
            found = "none set; each run starts one of its own and stops it at its end"
            return [_check("API", "warning", found, f"for schedules and the form, {START}")]
        return [_check("API", "problem", "none set, and none may be started", START)]
    try:
        with get_client(sync_client=True) as client:
            refused = client.api_healthcheck()
            if refused is not None:
                raise refused
            version = client.api_version()
            return [_server(url, version), *_work_pools(client)]
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError, OSError) as exc:
        found = f"{url} does not answer: {type(exc).__name__}: {exc}"
        advice = f"check PREFECT_API_URL, or {START}"
        return [_check("API", "problem", found, advice)]


def load_block(name: str) -> Block:
    """Load the storage block; none where no name is given."""
    if not name:
        return Block()
    try:
        return Block(storage_options(name), [_check(f"block {name}", "ok", "loaded")])
    except ParameterError as exc:
        return Block(
            checks=[_check(f"block {name}", "problem", str(exc), "save it, or name another.")]
        )
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError) as exc:
        found = f"cannot be looked up: {type(exc).__name__}"
        return Block(checks=[_check(f"block {name}", "problem", found, "mend the API first.")])


def _server(url: str, version: str) -> Check:
    found = f"{url} answers, version {version}"
    if version.split(".")[:2] == prefect_version.split(".")[:2]:
        return _check("API", "ok", found)
    advice = f"install the server's version here, or {prefect_version} there."
    return _check("API", "warning", f"{found}; {prefect_version} is installed here", advice)


def _work_pools(client: SyncPrefectClient) -> list[Check]:
    pools = [pool for pool in client.read_work_pools() if pool.type != "prefect:managed"]
    if not pools:
        advice = f"prefect work-pool create {POOL} --type process"
        return [_check("work pools", "warning", "none: deployments have nowhere to run", advice)]
    return [_work_pool(client, pool.name, pool.type, pool.is_paused) for pool in pools]


def _work_pool(client: SyncPrefectClient, name: str, kind: str, paused: bool) -> Check:
    workers = client.read_workers_for_work_pool(name)
    n_online = sum(str(getattr(w.status, "value", w.status)) == "ONLINE" for w in workers)
    if paused:
        advice = f"prefect work-pool resume {name}"
        return _check(f"work pool {name}", "warning", f"{kind}, paused", advice)
    if not n_online:
        advice = f"prefect worker start --pool {name}"
        return _check(f"work pool {name}", "warning", f"{kind}, no worker is online", advice)
    return _check(f"work pool {name}", "ok", f"{kind}, {n_online} online")


def _check(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(area="prefect", name=name, status=status, found=found, advice=advice)
