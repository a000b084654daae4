"""Checkpoints: safetensors files, torch files, folders of either, whole or in shards, and folders of
torch.distributed.checkpoint.

What a file is, is told from its first bytes, not from its name. Torch files are read with `weights_only=True`
alone, so that no code in them is run. What is written appears under its name whole or not at all.

To be read in this order:

    form     how a checkpoint is stored
    header   where tensors lie in a safetensors file, and moving them in and out
    file     what kind a file is; torch files
    distributed  folders of torch.distributed.checkpoint
    folder   which files are the checkpoint, and what to do with the others
    stored   a checkpoint as a mapping that reads what is asked for
    writer   a checkpoint that is written tensor by tensor
    state    all of it at once
    adapter  the folder of an adapter
    converted  what transformers converts when it saves and loads
    fit      a file under the names of a module
"""
from ..draft import whole
from .adapter import check_folder, is_adapter, load_adapter, save_adapter
from .converted import conversions
from .fit import FittedState, fit
from .form import CheckpointNote, Form, State
from .state import check_writable, fill_ties, load_state, save_state
from .stored import Stored, files_of, form_of
from .writer import Plan, Writer, plan, writing

__all__ = ["CheckpointNote", "FittedState", "Form", "Plan", "State", "Stored", "Writer", "check_folder", "check_writable", "conversions",
           "files_of", "fill_ties", "fit", "form_of", "is_adapter", "load_adapter", "load_state", "plan",
           "save_adapter", "save_state", "whole", "writing"]
