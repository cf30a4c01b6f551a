"""The data set that the demonstration draws."""
