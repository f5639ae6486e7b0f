"""Which module is the network, whether or not torch.compile has wrapped it."""

from torch import nn

STAND_IN = "_fewstep_stand_in"  # marks a method that answers in place of another


def uncompiled(module: nn.Module) -> nn.Module:
    """Returns the network inside what torch.compile returned; any other network itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def is_answered_for(module: nn.Module) -> bool:
    """Tells whether guidance answers in place of a module, which hooks have to be beneath."""
    return getattr(module.forward, STAND_IN, False)


def is_compiled(module: nn.Module) -> bool:
    """Tells whether a module or one inside it runs compiled code, or was recorded in graphs."""
    root = uncompiled(module)
    return root is not module or any(_has_compiled_call(each) for each in root.modules())


def _has_compiled_call(module: nn.Module) -> bool:
    return vars(module).get("_compiled_call_impl") is not None
