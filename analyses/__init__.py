"""The analyses of the paper, which analyze.py runs. They stand on `ekg`; the script gives them
networks and data.
"""
