"""`python -m demo`: everything at once on this machine, with real input, and a verdict."""

import signal
import sys
from pathlib import Path

import click

from demo.checks import missed
from demo.run import EXPECTED_ERRORS, Demonstration, StepFailed
from demo.show import Show


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".run/demo"),
    show_default=True,
    help="Folder of the stack's data, logs and artifacts; emptied before the run.",
)
@click.option("--keep", is_flag=True, help="Leave everything running, and say how to look around.")
def main(data: Path, keep: bool) -> None:
    """Start a pipeline, publish jobs of three organizations, and check what becomes of them.

    Exit code 0 when every expectation is met, 1 when one is not or a step failed, 130 when interrupted.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    show = Show()
    demonstration = Demonstration(data, show, keep=keep)
    stays = False
    try:
        checks = demonstration.run()
        show.verdict(checks)
        stays = keep
    except EXPECTED_ERRORS as error:
        show.failed(str(error), error.log if isinstance(error, StepFailed) else "")
        sys.exit(1)
    except KeyboardInterrupt:
        show.console.print("Interrupted.")
        sys.exit(130)
    finally:
        if not stays:
            _stop(demonstration, show)
    if stays:
        demonstration.say_where_to_look()
    else:
        show.what_next(demonstration.data)
    sys.exit(1 if missed(checks) else 0)


def _stop(demonstration: Demonstration, show: Show) -> None:
    # Once is enough: a second Ctrl-C would leave half of it running.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with show.step("Stop everything that was started"):
        demonstration.stop()


if __name__ == "__main__":
    main()
