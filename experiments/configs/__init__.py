"""Configs, one file per dataset; `digits_depth50` is the variant "depth50" of `digits.py`."""
