"""Rewriting graphs: what a state dict cannot hold, a module can.

    maps    a program with a map on each skip of a spec of residual segments
    module  a program and a state as a module of its own
"""
from .maps import beside, mapped, maps_of, on_skips
from .module import module_of, to_module

__all__ = ["beside", "mapped", "maps_of", "module_of", "on_skips", "to_module"]
