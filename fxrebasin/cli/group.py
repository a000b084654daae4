"""The commands by name: each is loaded when it is asked for, since some load torch, and help shall not wait for it."""
from __future__ import annotations

from importlib import import_module

import click

from .. import __version__

# Name -> the file that has the command, and what the list of commands says of it.
COMMANDS = {
    "inspect": ("command", "Show the symmetries of MODEL."),
    "match": ("command", "Find the alignment of one base onto another."),
    "apply": ("carry", "Permute a checkpoint by an alignment."),
    "transport": ("carry", "Carry a fine-tuning, or an adapter, over to a new base."),
    "verify": ("command", "Decide whether two checkpoints are one function, or an alignment keeps it."),
    "sweep": ("curves", "Score what is carried over, over alpha."),
    "barrier": ("curves", "Score what lies between two states, before and after alignment."),
    "demo": ("command", "Carry fine-tunings of shipped networks over, and measure the worth."),
}


class Commands(click.Group):
    """A group whose commands are in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            import_module(f".{COMMANDS[cmd_name][0]}", __package__)  # adds its commands to the group
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="fxrebasin")
@click.pass_context
def commands(context: click.Context) -> None:
    """Permutation symmetries of neural networks, and what can be carried along them.

    MODEL is package.module:callable, called without arguments (it returns an nn.Module, or a pair of a module
    and its example inputs), timm:NAME, torchvision:NAME, or the folder of a transformers model. Checkpoints are
    safetensors or torch files, or folders of them.

    Exit status: 0 done, 1 the answer is no, 2 the request is wrong.

    \b
    Example:
      fxrebasin inspect torchvision:resnet18 --input 2x3x64x64
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
