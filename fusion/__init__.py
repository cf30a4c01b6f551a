"""Stage two: trains and evaluates models from cached features, predicts, explains and serves."""
