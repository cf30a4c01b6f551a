"""Stage one: posts in, features out. Images and texts pass once through frozen encoders into an HDF5 cache."""
