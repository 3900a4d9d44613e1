"""The packages of the wheel; everything else is in pyproject.toml, which cannot both find packages and map one."""

from setuptools import find_packages, setup

# The kernels stand next to the package, where a reader looks for them, and import as megatron_remit.kernels:
# a top-level import named `kernels` would collide with another project of that name.
setup(
    packages=sorted({*find_packages(include=["megatron_remit", "megatron_remit.*"]), "megatron_remit.kernels"}),
    package_dir={"megatron_remit": "megatron_remit", "megatron_remit.kernels": "kernels"},
)
