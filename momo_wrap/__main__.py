"""`python -m momo_wrap` prints what to paste into a bug report."""

from momo_wrap import info

if __name__ == "__main__":
    info()
