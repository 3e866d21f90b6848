"""`python -m lowrank_course` is the same as `lowrank-course`."""

from lowrank_course.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
