"""`python -m bridle.cli`: the command line, where its script is not on the path."""

from bridle.cli.main import main

if __name__ == "__main__":
    main(prog_name="bridle")
