"""Batches of cached features: where they are held, how they are put together, folds."""
