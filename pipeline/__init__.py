"""Stage one: runs frozen encoders once over images and texts, and keeps their features in an HDF5 cache."""
