"""The commands of stage two: each reads its options, calls one function and prints the result."""
