"""Predictions for raw posts, and models to hand on."""
