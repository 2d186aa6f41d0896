"""`python -m luthier` is `luthier`."""

from luthier.cli import main

if __name__ == "__main__":
    main()
