"""The programs behind the console commands and tools/: each puts parts of the package together and holds no logic."""
