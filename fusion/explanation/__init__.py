"""Explanations: weights of patches and words for a prediction, and how faithful they are."""
