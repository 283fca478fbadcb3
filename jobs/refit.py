"""`python jobs/refit.py …` is `ovr-ray refit …`, for `ray job submit`."""

from ovr_ray.commands.cli import main

if __name__ == "__main__":
    main("refit")
