"""One ETL step per file, as Prefect tasks over plain functions."""
