"""`python jobs/predict.py …` is `ovr-ray predict …`, for `ray job submit`."""

from ovr_ray.commands.cli import main

if __name__ == "__main__":
    main("predict")
