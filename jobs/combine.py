"""`python jobs/combine.py …` is `ovr-ray combine …`, for `ray job submit`."""

from ovr_ray.commands.cli import main

if __name__ == "__main__":
    main("combine")
