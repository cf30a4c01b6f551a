"""Evaluation on cached posts: metrics, intervals, the linear probe, comparisons."""
