"""The partner engine: the one place that sends. Adapters translate, this calls."""
