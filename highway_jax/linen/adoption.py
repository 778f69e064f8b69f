"""Consistent parameter names for modules that are fields of other modules.

If `Holder(nn.Dense(8))` is built in a compact method, Flax names both modules after their classes and puts them side by
side, so that the kernel is in `Dense_0` rather than in `Holder_0`. Built anywhere else, the inner module is named after
the holder's field. `adopt` always gives it the name of the field.
"""

import dataclasses

import flax.linen as nn
import jax


class _Place(nn.Module):
    """A module whose scope is shared with an adopted one."""


def adopt(holder: nn.Module, *fields: str) -> None:
    """Move the modules in some fields of a module, and the modules in their fields, into its scope.

    Call it at the end of `__post_init__`, before any of these modules is used. Other holders of an adopted module keep
    sharing its parameters. A module that already has variables is not moved.

    Args:
      holder: the module that holds the others; it must have a scope.
      *fields: the names of its fields.
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
