"""The commands of stage one: each reads its options, calls one function and prints the result."""
