"""What a Ray Train run held is given back when its controller ends: a workaround for Ray 2.60.

A worker that dies between its group's start and the start of the training function fails the controller, which then ends in
good order: it tells the cleaner, which looks after controllers that die, that there is nothing to clean. But it has lost the
group, and what that held stays taken until the job ends. In a small cluster the next attempt would wait for it for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup


class GiveBack(WorkerGroupCallback, ControllerCallback):
    """Remembers what the latest worker group holds, and removes it when the controller ends."""

    def __init__(self) -> None:
        self.held: PlacementGroup | None = None

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Called in the controller, before the training function starts."""
        self.held = worker_group.get_worker_group_state().placement_group_handle.placement_group

    async def before_controller_shutdown(self) -> None:
        """Called in the controller, after it has removed the group that it knows of; to remove one twice changes nothing."""
        if self.held is not None:
            remove_placement_group(self.held)
            self.held = None
