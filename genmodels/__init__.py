"""One generative algorithm per file; knows neither Prefect nor shards."""
