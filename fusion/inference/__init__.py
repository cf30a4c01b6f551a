"""Inference: predictions for raw posts, and exported models."""
