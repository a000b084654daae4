"""Help comes at once: nothing heavy is loaded for it, and its list of commands is that of the commands."""
import subprocess
import sys

import click
import pytest

from fxrebasin.cli.group import COMMANDS, commands


def ran(*arguments: str) -> tuple[str, set[str], float, int]:
    """What a command prints, which packages it loaded, its processor time and its memory in MB."""
    code = ("import sys, time; from fxrebasin.cli import run; status = run(sys.argv[1:]); "
            "print('\\nLOADED', *{m.split('.')[0] for m in sys.modules}, file=sys.stderr); "
            "status = dict(line.split(':', 1) for line in open('/proc/self/status')); "  # rusage has the parent's peak
            "print('USED', time.process_time(), int(status['VmHWM'].split()[0]) // 1024, file=sys.stderr)")
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    loaded, used = result.stderr.splitlines()[-2:]
    _, seconds, memory = used.split()
    return result.stdout, set(loaded.split()[1:]), float(seconds), int(memory)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], []])
def test_help_loads_next_to_nothing(arguments):
    text, loaded, seconds, memory = ran(*arguments)
    assert text.strip() and not loaded & {"torch", "numpy", "scipy", "rich", "matplotlib", "jinja2", "networkx"}
    assert memory < 60


def test_the_list_is_that_of_the_commands():
    context = click.Context(commands)
    for name in COMMANDS:
        command = commands.get_command(context, name)
        assert command is not None and command.name == name and command.help
    assert set(commands.commands) == set(COMMANDS)  # none that the list does not name
    assert commands.get_command(context, "nothing") is None


def test_an_unknown_command_is_a_wrong_request(capfd):
    from fxrebasin.cli import WRONG, run

    assert run(["inspct"]) == WRONG and "inspct" in capfd.readouterr().err
