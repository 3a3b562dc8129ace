"""``python -m raydistill``: the command line where no script is installed, as in a job on a cluster."""

from raydistill.cli.main import main

if __name__ == "__main__":
    main()
