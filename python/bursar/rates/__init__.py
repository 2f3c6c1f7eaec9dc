"""Makes the rate card that the sidecar reads: `python -m bursar.rates generate`.

Prices come from the package genai-prices, which is needed here and nowhere else. The daemon reads
the file, never the package.
"""
