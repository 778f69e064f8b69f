"""One file per family of configs; `digits_depth50` is `digits.py`'s variant "depth50"."""
