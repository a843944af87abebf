"""`python -m truequant` is the command `truequant`."""

from truequant.cli import main

if __name__ == "__main__":
    main()
