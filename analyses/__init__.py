"""The analyses of the paper, which analyze.py runs; they use `ekg` and get networks and data."""
