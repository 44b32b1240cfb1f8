"""`python -m normforge` is the command `normforge`."""

from normforge.cli.main import main

if __name__ == "__main__":
    main()
