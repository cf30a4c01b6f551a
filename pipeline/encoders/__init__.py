"""Frozen image and text encoders: by name or from files, with the fingerprint of what they compute."""
