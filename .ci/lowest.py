"""Print the lower bounds of the installed highway-jax's requirements as pip constraints, extras included."""

import re
import sys
from importlib.metadata import requires

for requirement in requires("highway-jax") or []:
    bound = re.match(r"([\w.-]+)[^;]*[>=]=([\w.]+)", requirement)
    if not bound:
        sys.exit(f"setup.py: {requirement!r} has no lower bound")
    print("==".join(bound.groups()))
