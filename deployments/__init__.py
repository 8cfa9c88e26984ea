"""Stillhouse on Ray Serve: ingress, trainers, predictors and the registry of runs."""
