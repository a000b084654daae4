"""The commands by name: each is loaded when it is asked for, since some load torch, and help shall not wait for it."""
from __future__ import annotations

from importlib import import_module

import click

from .. import __version__

# Name -> the file that has the command, what the list of commands says of it, and an example for its help.
COMMANDS = {
    "inspect": ("command", "Show the symmetries of MODEL.",
                "fxrebasin inspect torchvision:resnet18 --html resnet18.html"),
    "match": ("command", "Find the alignment of one base onto another.",
              "fxrebasin match net:make old.safetensors new.safetensors -o pi.safetensors --input 2x8"),
    "apply": ("carry", "Permute a checkpoint by an alignment.",
              "fxrebasin apply pi.safetensors old.safetensors -o moved.safetensors"),
    "transport": ("carry", "Carry a fine-tuning, or an adapter, over to a new base.",
                  "fxrebasin transport old.safetensors tuned.safetensors new.safetensors --alignment pi.safetensors -o out.safetensors"),
    "verify": ("command", "Decide whether two checkpoints are one function, or an alignment keeps it.",
               "fxrebasin verify net:make a.safetensors b.safetensors --input 2x8"),
    "sweep": ("curves", "Score what is carried over, over alpha.",
              "fxrebasin sweep net:make old.safetensors tuned.safetensors new.safetensors --score net:score -o sweep.png"),
    "barrier": ("curves", "Score what lies between two states, before and after alignment.",
                "fxrebasin barrier net:make old.safetensors new.safetensors --score net:score -o barrier.png"),
    "demo": ("command", "Carry fine-tunings of shipped networks over, and measure the worth.", "fxrebasin demo -o results"),
}


class Commands(click.Group):
    """A group whose commands are in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            import_module(f".{COMMANDS[cmd_name][0]}", __package__)  # adds its commands to the group
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.epilog = f"\b\nExample:\n  {COMMANDS[cmd_name][2]}"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary, _) in COMMANDS.items()])


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
