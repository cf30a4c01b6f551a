"""What predictions on cached posts are worth: metrics, intervals, the linear probe, comparisons."""
