"""Trains a model from the cache, on one process or several."""
