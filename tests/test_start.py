"""Help comes at once: nothing heavy is loaded for it, and its list of commands is that of the commands."""
import os
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


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_help_of_each_command_ends_with_an_example_that_it_takes(name, capfd):
    from fxrebasin.cli import run

    example = COMMANDS[name][2].split()
    assert run([name, "-h"]) == 0 and " ".join(example) in " ".join(capfd.readouterr().out.split())
    command = commands.get_command(click.Context(commands), name)
    assert example[:2] == ["fxrebasin", name]
    command.make_context(name, example[2:])  # raises UsageError for an option or an argument that there is not


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    result = subprocess.run([sys.executable, "-c", "from fxrebasin.cli import main; main()"], capture_output=True, text=True,
                            env={**os.environ, "_FXREBASIN_COMPLETE": f"{shell}_source"})
    assert result.returncode == 0 and "_FXREBASIN_COMPLETE" in result.stdout, result.stderr
    words = {"COMP_WORDS": "fxrebasin ins", "COMP_CWORD": "1" if shell != "fish" else "ins"}
    result = subprocess.run([sys.executable, "-c", "from fxrebasin.cli import main; main()"], capture_output=True, text=True,
                            env={**os.environ, "_FXREBASIN_COMPLETE": f"{shell}_complete", **words})
    assert "inspect" in result.stdout, result.stderr


@pytest.mark.parametrize("model, near", [("netz_of_mine:make", "net_of_mine"), ("net_of_mine:mak", "make"),
                                         ("torch.nnn:Linear", "nn"), ("net_of_mine:Outer.innr", "inner")])
def test_a_mistake_in_the_models_name_is_met_with_the_nearest(model, near, tmp_path, monkeypatch, capfd):
    from fxrebasin.cli import WRONG, run

    (tmp_path / "net_of_mine.py").write_text("def make(): pass\nclass Outer:\n    def inner(self): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(["inspect", model]) == WRONG
    said = capfd.readouterr().err
    assert f"near it: {near}" in said and "model-names" in said
