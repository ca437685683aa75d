"""Each ETL step as a plain function, without an orchestrator."""
