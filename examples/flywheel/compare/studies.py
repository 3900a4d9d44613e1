"""The studies: which worlds, arms and orders each question needs, and what must be made before."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.arms import named

from compare.arms import ARMS, FIRST, MORE_REFERENCES
from compare.schedule import Node
from compare.stages import Stages
from compare.worlds import SHAPES, Sizes, World

STUDIES = ("methods", "lasting", "flywheel", "errors", "threads", "again", "size")
KEPT = ("ntp", "kd", "remit")
"""Arms whose models go through post-training."""
OF_ERRORS = ("ntp", "remit", "remit_no_clip")
OF_SIZE = ("ntp", "remit", "remit_before_rl")
OF_AGAIN, NEW_ORDER = ("ntp", "remit", "remit_before_rl", "remit_permuted"), 4
"""Arms that run once more, in an order that no other study has: with three bases a tenth of the runs of the methods
that come first."""
SHARES = (0.0, 0.1, 0.5)
"""Of wrong problems, in addition to that of the other studies."""
LARGER = tuple(SHAPES)[1:]
"""Models of the study of sizes, in addition to that of the other studies."""


@dataclass(frozen=True)
class Asked:
    """What is asked for."""

    run_dir: Path
    sizes: Sizes
    bases: Sequence[int] = (1, 2, 3)
    orders: Sequence[int] = (1, 2, 3)
    arms: Sequence[str] = tuple(ARMS)
    shares: Sequence[float] = SHARES
    larger: Sequence[str] = LARGER

    def world(self, base: int, errors: float = 0.3, size: str = World.size, threads: int = 1) -> World:
        """One of its worlds."""
        return World(self.run_dir, self.sizes, base, errors, size, threads)

    def stages(self, world: World, node: str) -> Stages:
        """The stages of ``world`` for a node of that name."""
        return Stages(world, self.run_dir / f"logs/{node}.log")


def nodes(asked: Asked, study: str) -> Iterator[Node]:
    """All that ``study`` needs, what comes first in front."""
    yield from {
        "methods": _methods,
        "lasting": _lasting,
        "flywheel": _flywheel,
        "errors": _errors,
        "threads": _threads,
        "again": _again,
        "size": _size,
    }[study](asked)


def _world(asked: Asked, world: World) -> Iterator[Node]:
    """Data, base and RL reference of a world."""
    name = world.name

    def stages(stage: str) -> Stages:
        return asked.stages(world, f"{stage}.{name}")

    yield Node(f"data.{name}", lambda: stages("data").make_data(), (), "corpora, tokenizer, a random model")
    yield Node(f"base.{name}", lambda: stages("base").make_base(), (f"data.{name}",), "a base past its jump")
    yield _before(asked, world, "remit")


def _before(asked: Asked, world: World, arm: str) -> Node:
    """The last thing that ``arm`` needs in its world."""
    needs, name = (f"references.{world.name}",), world.name
    if arm == "miniplm":
        node = f"selected.{name}"
        return Node(node, lambda: asked.stages(world, node).select(), needs, "MiniPLM's documents")
    if ARMS[arm].reference in MORE_REFERENCES:
        node = f"more_references.{name}"
        return Node(node, lambda: asked.stages(world, node).more_references(), needs, "SFT on errors, RL, early RL")
    node = needs[0]
    return Node(node, lambda: asked.stages(world, node).reference(), (f"base.{name}",), "SFT, RL")


def arm_node(asked: Asked, study: str, world: World, arm: str, order: int) -> Node:
    """One arm in one order of the data."""
    cell = f"{study}.{arm}.{world.name}.o{order}"
    run = f"{study}.{arm}.o{order}"
    about = {"study": study, "arm": arm, "order": f"{order}", "stage": "mid"}

    def action() -> None:
        stages = asked.stages(world, cell)
        stages.arm(run, arm, order)
        stages.measure_run(run, cell, about, keep_hf=arm in KEPT)
        for other in _serves(asked, study, world, arm, order):
            stages.copy_cell(cell, f"{other}.{arm}.{world.name}.o{order}", other)

    return Node(cell, action, (_before(asked, world, arm).name,), named(arm).name, world.threads)


def _serves(asked: Asked, study: str, world: World, arm: str, order: int) -> list[str]:
    """The other studies that a run of the methods is a cell of."""
    if study != "methods":
        return []
    found = ["lasting"] if arm in KEPT else []
    if arm in OF_ERRORS:
        found.append("errors")
    if arm in OF_SIZE and world.base == asked.bases[0]:
        found.append("size")
    return found


def _methods(asked: Asked) -> Iterator[Node]:
    worlds = [asked.world(base) for base in asked.bases]
    for world in worlds:
        yield from _world(asked, world)
    first = [arm for arm in FIRST if arm in asked.arms]
    rest = [arm for arm in asked.arms if arm not in FIRST]
    for arms in (first, rest):
        for order in asked.orders:
            for world in worlds:
                for arm in arms:
                    yield _before(asked, world, arm)  # of those that come twice, the first counts
                    yield arm_node(asked, "methods", world, arm, order)
    if {"ntp", "remit"} <= set(asked.arms):
        yield _kinds(asked, worlds[0])


def _kinds(asked: Asked, world: World) -> Node:
    """The weights of each kind of token, under the base and under what NTP makes of it."""
    node, order = f"kinds.{world.name}", asked.orders[0]
    policies = {"base": "base", "after NTP": f"methods.ntp.o{order}", "after ReMiT": f"methods.remit.o{order}"}
    needs = tuple(f"methods.{arm}.{world.name}.o{order}" for arm in ("ntp", "remit"))
    return Node(node, lambda: asked.stages(world, node).token_kinds(policies), needs, "weights by kind of token")


def _post_trained(asked: Asked, world: World, arm: str, order: int) -> Node:
    """SFT and RL behind an arm, measured after each."""
    cell = f"lasting.{arm}.{world.name}.o{order}"

    def action() -> None:
        stages, sizes = asked.stages(world, cell), asked.sizes
        about: dict[str, Any] = {"study": "lasting", "arm": arm, "order": f"{order}"}
        source = world.hf(f"methods.{arm}.o{order}")
        tuned, rl = f"sft.{arm}.o{order}", f"rl.{arm}.o{order}"
        stages.post_train(tuned, source, "sft", sizes.sft, "sft")
        stages.measure_hf(tuned, about | {"stage": "sft"}, f"{cell}.sft")
        stages.post_train(rl, world.hf(tuned), "grpo", sizes.grpo, "grpo")
        stages.measure_hf(rl, about | {"stage": "grpo"}, f"{cell}.grpo")

    return Node(cell, action, (f"methods.{arm}.{world.name}.o{order}",), f"SFT and RL behind {named(arm).name}")


def _lasting(asked: Asked) -> Iterator[Node]:
    yield from _with_methods(asked, KEPT)
    for order in asked.orders:
        for base in asked.bases:
            for arm in KEPT:
                yield _post_trained(asked, asked.world(base), arm, order)


def _flywheel(asked: Asked) -> Iterator[Node]:
    """A second round from the same base: ReMiT with the RL model of ReMiT, and with that of NTP."""
    yield from _lasting(asked)
    for order in asked.orders:
        for base in asked.bases:
            world = asked.world(base)
            for arm in ("remit", "ntp"):
                yield _second_round(asked, world, arm, order)


def _second_round(asked: Asked, world: World, arm: str, order: int) -> Node:
    cell = f"flywheel.second_{arm}.{world.name}.o{order}"
    run = f"flywheel.second_{arm}.o{order}"

    def action() -> None:
        stages = asked.stages(world, cell)
        stages.arm(run, "remit", order, reference=f"rl.{arm}.o{order}")
        about = {"study": "flywheel", "arm": f"second_{arm}", "order": f"{order}", "stage": "mid"}
        stages.measure_run(run, cell, about)

    needs = (f"lasting.{arm}.{world.name}.o{order}",)
    return Node(cell, action, needs, f"a second round, the reference being the RL model of {named(arm).name}")


def _errors(asked: Asked) -> Iterator[Node]:
    for errors in asked.shares:
        worlds = [asked.world(base, errors) for base in asked.bases]
        for world in worlds:
            yield from _world(asked, world)
        for order in asked.orders:
            for world in worlds:
                for arm in OF_ERRORS:
                    yield arm_node(asked, "errors", world, arm, order)


def _threads(asked: Asked) -> Iterator[Node]:
    """Arms of the methods again with two threads, whose sums are taken in another order."""
    yield from _with_methods(asked, ("ntp", "remit"))
    for order in asked.orders:
        for base in asked.bases:
            world = asked.world(base, threads=2)
            for arm in ("ntp", "remit"):
                yield arm_node(asked, "threads", world, arm, order)


def _again(asked: Asked) -> Iterator[Node]:
    """Whether the intervals hold what they say: new runs, which no interval was made from."""
    for base in asked.bases:
        world = asked.world(base)
        yield from _world(asked, world)
        for arm in OF_AGAIN:
            yield arm_node(asked, "again", world, arm, NEW_ORDER)


def _size(asked: Asked) -> Iterator[Node]:
    for size in asked.larger:
        world = asked.world(asked.bases[0], size=size)
        yield from _world(asked, world)
        for order in asked.orders:
            for arm in OF_SIZE:
                yield arm_node(asked, "size", world, arm, order)


def _with_methods(asked: Asked, arms: Sequence[str]) -> Iterator[Node]:
    yield from _methods(Asked(asked.run_dir, asked.sizes, asked.bases, asked.orders, arms))


def together(asked: Asked, studies: Iterable[str]) -> list[Node]:
    """The nodes of several studies, each once."""
    found: dict[str, Node] = {}
    for study in studies:
        for node in nodes(asked, study):
            found.setdefault(node.name, node)
    return list(found.values())
