"""The command line as a program: the script `bridle`, and `python -m bridle.cli` where that is not on the path."""

import signal


def run() -> None:
    """Before a verb begins, while modules are read, and after it has ended Ctrl-C ends the process as other signals do: by itself, and
    without a traceback. A verb has handlers of its own (main.py)."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bridle.cli.main import main

    main(prog_name="bridle")


if __name__ == "__main__":
    run()
