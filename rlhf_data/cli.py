"""The command line: its commands, and what their errors become. Nothing heavy is imported before it is needed."""

import sys

import typer

from rlhf_data.commands import generate, looking, specs, weighing, workspace
from rlhf_data.terminal import message, missing_extra, say

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Raw feedback → validated, weighted preference tables → reference log-probs → a trained policy.",
)
scores_app = typer.Typer(rich_markup_mode=None, help="Look after the score store: compact it, merge another into it.")
STOPPED = 130  # the exit code of Ctrl-C

for command in (  # in the order of --help
    workspace.init,
    specs.check,
    specs.plan,
    specs.build,
    specs.run,
    specs.score,
    specs.train,
    specs.evaluate,
    generate.generate,
    weighing.rules,
    weighing.weights,
    looking.show,
    looking.diff,
    looking.query,
    looking.explain,
    looking.quarantine,
    weighing.report,
    workspace.gc,
    workspace.doctor,
    workspace.deploy,
):
    app.command()(command)
for command in (workspace.compact, workspace.merge):
    scores_app.command()(command)
app.add_typer(scores_app, name="scores")


def main() -> None:
    """Run the command line; every error is a message and exit code 1."""
    if sys.argv[1:2] == ["score"]:
        from rlhf_data.scoring.allocator import restart_flat

        restart_flat()
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """One command; its exit code: 0 done, 1 any error, 2 changes pending (`plan` only)."""
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
        if code == STOPPED:  # typer has taken Ctrl-C for an exit code
            raise KeyboardInterrupt
        return code
    except typer.TyperException as error:
        say(f"{error.format_message()}\nsee: rlhf-data --help")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        say("stopped; what was finished is kept, and the same command goes on from there")
        return STOPPED
    except ImportError as error:
        say(missing_extra(error))
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        say(message(error))
        return 1
    except Exception as error:
        if not type(error).__module__.startswith("polars"):  # polars, not imported here, has errors of its own
            raise
        say(message(error))
        return 1


if __name__ == "__main__":
    main()
