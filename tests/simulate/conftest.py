"""One process with all imports, and the gate's runs, each simulated once for all tests."""

import pytest

from megatron_remit.launch.gpus import gpu
from megatron_remit.simulate.run import Simulator, simulate_run
from tests.simulate.layouts import CASES, CONFIGS, FLAGS


@pytest.fixture(scope="session")
def simulator():
    with Simulator() as one:
        yield one


@pytest.fixture(scope="session")
def gate(simulator, tmp_path_factory):
    """A function: the name of a case to its figures by rank."""
    folder, done = tmp_path_factory.mktemp("gate"), {}
    for name, config in CONFIGS.items():
        config.save_pretrained(folder / name)
        config.save_pretrained(folder / f"{name}_base/hf")

    def simulated(name):
        if name not in done:
            case = CASES[name]
            flags = case.flags.replace("BASE", f"{folder}/{case.model}_base").replace("STORE", f"{folder}/store")
            training = [*FLAGS.split(), "--objective", case.objective, *flags.split()]
            model = folder / case.model
            reference = None if case.objective == "ntp" else model
            done[name] = simulate_run(model, reference, case.gpus, training, gpu("H100-80GB"), simulator=simulator)
        return done[name]

    return simulated
