"""Parameters of a module that another one holds, under their holder's name for it.

In a compact method, `Holder(nn.Dense(8))` makes Flax name both modules after their classes, side by side: the kernel is
in `Dense_0` and not in `Holder_0`. Anywhere else the inner one is named after the holder's field. Here it always is.
"""

import dataclasses

import flax.linen as nn
import jax


class _Place(nn.Module):
    """Has a scope to share."""


def adopt(holder: nn.Module, *fields: str) -> None:
    """Move modules in some fields of a module, and the modules in their fields, into its scope.

    It is for the end of `__post_init__`, before any of them is used. Whoever else holds such a module goes on sharing
    its parameters. A module that has variables already stays where they are.
    """
    assert holder.scope is not None
    for field in fields:
        for path, module in jax.tree_util.tree_leaves_with_path(getattr(holder, field)):
            if not isinstance(module, nn.Module) or module.scope is None:
                continue
            inside = module.path[: len(holder.path)] == holder.path
            if inside or module.variables:
                continue
            name = field + "".join(f"_{getattr(key, 'key', getattr(key, 'idx', key))}" for key in path)
            nn.share_scope(module, _Place(parent=None).clone(parent=holder.scope.push(name)))
            adopt(module, *(f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name") and f.init))
