"""`python jobs/report.py …` is `ovr-ray report …`, for `ray job submit`."""

from ovr_ray.commands.cli import main

if __name__ == "__main__":
    main("report")
