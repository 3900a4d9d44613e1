"""The tiny world of the flywheel: problems with worked steps, some of them wrong, whose every piece is known for what
it is."""
