"""Runs the encoders over posts, in parallel and resumably, and checks what they wrote."""
