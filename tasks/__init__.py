"""One ETL step per file, as Prefect tasks over the plain functions in `stages`."""
