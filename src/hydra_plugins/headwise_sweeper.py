"""Hydra's way to a sweep that knows what is finished: ``hydra/sweeper: resuming``, which conf/config.yaml chooses.

Hydra looks for plugins in this package only; everything else is in `headwise.runs.jobs` and `headwise.runs.sweep`.
"""

# No `from __future__ import annotations`: hydra executes this file before it is in sys.modules, where dataclasses look.
import functools
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ResumingSweeperConf:
    """Fields of ``hydra.sweeper``."""

    _target_: str = "hydra_plugins.headwise_sweeper.ResumingSweeper"
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="resuming", node=ResumingSweeperConf, provider="headwise")


class ResumingSweeper(Sweeper):
    """The product of all choices, like hydra's basic sweeper, without the runs that are finished.

    Args:
        params: choices that an experiment brings; the command line beats them.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = dict(params or {})
        self.config: DictConfig | None = None
        self.loader: Any = None
        self.launcher: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what hydra gives."""
        from hydra.core.plugins import Plugins

        from headwise.commands.composition import KeptLoader

        self.config, self.loader = config, KeptLoader(hydra_context.config_loader.get_search_path())
        context = HydraContext(config_loader=self.loader, callbacks=hydra_context.callbacks)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; returns the accuracy of every job."""
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        from headwise.protocol.job import folders
        from headwise.protocol.plan import settled
        from headwise.runs.jobs import check_jobs, elsewhere, jobs_of
        from headwise.runs.sweep import Sweep
        from headwise.runs.workload import work_of

        if self.config is None:
            raise RuntimeError("setup() comes before sweep()")
        jobs = jobs_of(self.params, arguments, self.loader)
        sources = tuple(folders(self.config.hydra.runtime.config_sources))
        composed = functools.partial(self.loader.load_sweep_config, self.config)
        work = functools.partial(work_of, self.loader, self.config)
        by_turns = isinstance(self.launcher, BasicLauncher)

        def check(jobs: list[list[str]]) -> None:
            self.loader.check(self.config, jobs)
            check_jobs(jobs, composed, sources, settled if by_turns else elsewhere)

        return Sweep(self.config, jobs, self.launcher.launch, check, None if by_turns else work).run()
