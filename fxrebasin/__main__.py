"""`python -m fxrebasin` is `fxrebasin`."""
from .cli import main

if __name__ == "__main__":
    main()
