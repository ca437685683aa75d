"""OpenLineage events of a run: it starts, it completes or fails, with what it read and what it published.

They are sent where OpenLineage is configured, by its own variables (``OPENLINEAGE_URL``, ``OPENLINEAGE_CONFIG``,
``OPENLINEAGE__TRANSPORT__TYPE`` …) or an ``openlineage.yml``, and nowhere else. No event holds a value of a record,
and a server that cannot be reached ends no run.
"""

import importlib.util
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect_augment.params.locations import hide_secrets
from prefect_augment.schema import ColumnInfo, DatasetInfo, Manifest, software_versions
from prefect_augment.shards.parquet import LINEAGE

logger = logging.getLogger(__name__)

NAMESPACE = "prefect-augment"
PRODUCER = "urn:prefect-augment"  # OpenLineage wants a URI


def is_configured() -> bool:
    """Whether the user configured OpenLineage, and did not disable it."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    by_variable = any(
        name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") or name.startswith("OPENLINEAGE__")
        for name, value in os.environ.items()
        if value
    )
    folders = (Path.cwd(), Path.home() / ".openlineage")
    return by_variable or any((folder / "openlineage.yml").is_file() for folder in folders)


@contextmanager
def traced(job: str, source: str, destination: str, run_id: str | None = None) -> Iterator[None]:
    """Send the events of the run in the block: START, then COMPLETE, or FAIL with the error's name.

    ``source`` and ``destination`` are URIs; ``run_id`` is a UUID, Prefect's where there is one. What
    :func:`record_outcome` says in the block goes with the last event. A run that is stopped is an ABORT; one that is
    suspended for approval is still RUNNING.
    """
    if not is_configured():
        yield
        return
    if importlib.util.find_spec("openlineage") is None:
        logger.warning(
            "OpenLineage is configured, and its client is not installed, so no events are sent: pip install "
            "'prefect-augment[lineage]'."
        )
        yield
        return
    trace = _Trace(job, source, destination, run_id or str(uuid.uuid4()))
    token = _ACTIVE.set(trace)
    try:
        trace.emit("START")
        yield
    except Exception as exc:
        # Not its message, which may quote a value.
        trace.emit("FAIL", error=type(exc).__name__)
        raise
    except BaseException as exc:
        # Prefect ends the process of a run that waits for approval; resumed, it starts over under the same id.
        trace.emit("RUNNING" if type(exc).__name__ == "Pause" else "ABORT")
        raise
    else:
        trace.emit("COMPLETE")
    finally:
        _ACTIVE.reset(token)
        trace.close()


def is_traced() -> bool:
    """Whether :func:`record_outcome` has anybody to tell."""
    return _ACTIVE.get() is not None


def record_outcome(info: DatasetInfo, manifest: Manifest | None) -> None:
    """Add to the events what was read and, where a version is there, what was published."""
    if trace := _ACTIVE.get():
        trace.info, trace.manifest = info, manifest


class _Trace:
    """One run's events."""

    def __init__(self, job: str, source: str, destination: str, run_id: str) -> None:
        self.job, self.source, self.destination, self.run_id = job, source, destination, run_id
        self.info: DatasetInfo | None = None
        self.manifest: Manifest | None = None
        self.client: Any = None

    def emit(self, state: str, *, error: str = "") -> None:
        """Send one event; a warning if that fails."""
        try:
            if self.client is None:
                from openlineage.client import OpenLineageClient

                self.client = OpenLineageClient()
            self.client.emit(self._event(state, error))
        except Exception as exc:  # noqa: BLE001 - each transport has errors of its own
            logger.warning("OpenLineage's %s event was not sent (%s).", state, type(exc).__name__)

    def close(self) -> None:
        """Send what the transport still holds."""
        try:
            if self.client is not None:
                self.client.close(timeout=5.0)
        except Exception as exc:  # noqa: BLE001 - as above
            logger.warning("OpenLineage's transport did not close (%s).", type(exc).__name__)

    def _event(self, state: str, error: str) -> Any:
        from openlineage.client import event_v2, facet_v2

        versions = software_versions()
        run: dict[str, Any] = {
            "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet(
                version=versions.get("prefect", ""),
                name="prefect",
                openlineageAdapterVersion=versions.get("prefect-augment", ""),
            )
        }
        if error:
            run["errorMessage"] = facet_v2.error_message_run.ErrorMessageRunFacet(
                message=error, programmingLanguage="PYTHON"
            )
        kind = facet_v2.job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="PREFECT_AUGMENT", jobType="FLOW"
        )
        return event_v2.RunEvent(
            eventType=event_v2.RunState[state],
            eventTime=datetime.now(UTC).isoformat(),
            run=event_v2.Run(runId=self.run_id, facets=run),
            job=event_v2.Job(namespace=NAMESPACE, name=self.job, facets={"jobType": kind}),
            inputs=self._inputs(event_v2, facet_v2),
            outputs=self._outputs(event_v2, facet_v2),
            producer=PRODUCER,
        )

    def _inputs(self, event_v2: Any, facet_v2: Any) -> list[Any]:
        uri = self.source
        # Of a proposal, or an example that the run has made.
        if not uri and self.manifest is not None:
            uri = str(self.manifest.params.get("source", {}).get("uri", ""))
        if not uri:
            return []
        namespace, name = _named(uri)
        facets: dict[str, Any] = {}
        sent: dict[str, Any] = {}
        if info := self.info:
            n_records = sum(sum(classes.values()) for classes in info.part_counts.values())
            label = ColumnInfo(
                name=info.label, arrow_type=info.label_type, kind="category", n_null=0,
                n_unique=len({name for classes in info.part_counts.values() for name in classes}),
            )  # fmt: skip
            columns = [*info.columns, label]
            metrics = facet_v2.data_quality_metrics_dataset
            facets["schema"] = _schema(facet_v2, [(c.name, c.arrow_type) for c in columns])
            facets["dataQualityMetrics"] = metrics.DataQualityMetricsDatasetFacet(
                rowCount=n_records,
                columnMetrics={
                    c.name: metrics.ColumnMetrics(nullCount=c.n_null, distinctCount=c.n_unique)
                    for c in columns
                },
            )
            sent["inputStatistics"] = (
                facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                    rowCount=n_records + info.n_quarantined, fileCount=len(info.sources) or None
                )
            )
        return [
            event_v2.InputDataset(namespace=namespace, name=name, facets=facets, inputFacets=sent)
        ]

    def _outputs(self, event_v2: Any, facet_v2: Any) -> list[Any]:
        manifest = self.manifest
        if manifest is None:
            return []
        namespace, name = _named(self.destination)
        columns = [(c.name, c.arrow_type) for c in manifest.columns]
        columns.append((manifest.label, manifest.label_type))
        columns += [(field.name, str(field.type)) for field in LINEAGE]
        statistics = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=sum(s.n_records for s in manifest.shards),
            size=sum(s.n_bytes for s in manifest.shards),
            fileCount=len(manifest.shards),
        )
        version = facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=str(manifest.version)
        )
        facets = {"schema": _schema(facet_v2, columns), "version": version}
        sent = {"outputStatistics": statistics}
        return [
            event_v2.OutputDataset(namespace=namespace, name=name, facets=facets, outputFacets=sent)
        ]


_ACTIVE: ContextVar[_Trace | None] = ContextVar("openlineage_trace", default=None)


def _schema(facet_v2: Any, columns: list[tuple[str, str]]) -> Any:
    kind = facet_v2.schema_dataset
    fields = [kind.SchemaDatasetFacetFields(name=name, type=arrow) for name, arrow in columns]
    return kind.SchemaDatasetFacet(fields=fields)


def _named(uri: str) -> tuple[str, str]:
    """Namespace and name of a dataset by OpenLineage's convention.

    Examples
    --------
    >>> _named("s3://lake/defects/*.csv"), _named("/data/defects")
    (('s3://lake', 'defects/*.csv'), ('file', '/data/defects'))
    """
    scheme, sign, rest = hide_secrets(uri).partition("://")
    if not sign or scheme == "file":
        return "file", str(Path(rest if sign else uri).absolute())
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", path or "/"
