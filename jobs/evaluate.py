"""`python jobs/evaluate.py …` is `ovr-ray evaluate …`, for `ray job submit`."""

from ovr_ray.commands.cli import main

if __name__ == "__main__":
    main("evaluate")
