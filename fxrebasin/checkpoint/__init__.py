"""Checkpoints: safetensors files, torch files, and folders of either, whole or in shards.

What a file is, is told from its first bytes, not from its name. Torch files are read with `weights_only=True`
alone, so that no code in them is run. What is written appears under its name whole or not at all.

To be read in this order: `form` (how a checkpoint is stored), `file` (reads and writes one file), `folder`
(several, as transformers stores them), `state` (the functions below).
"""
from .adapter import is_adapter, load_adapter, save_adapter
from .file import whole
from .form import CheckpointNote, Form, State
from .state import check_writable, fill_ties, form_of, load_state, save_state

__all__ = ["CheckpointNote", "Form", "State", "check_writable", "fill_ties", "form_of", "is_adapter",
           "load_adapter", "load_state", "save_adapter", "save_state", "whole"]
