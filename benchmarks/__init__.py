"""Measurements against peers and targets: ``python -m benchmarks``. Nothing of the service imports this."""
