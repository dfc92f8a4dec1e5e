"""`python -m hpclm.cli`: the same as `hpclm`, where no script is on PATH."""

from hpclm.cli.app import main

if __name__ == "__main__":
    main()
