"""`python -m quantkit`: the program `quantkit`, where its scripts are not on the PATH."""

from quantkit.cli import main

if __name__ == "__main__":
    main()
