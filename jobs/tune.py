"""`python jobs/tune.py …` is `ovr-ray tune …`, for `ray job submit`."""

from ovr_ray.commands.cli import main

if __name__ == "__main__":
    main("tune")
