"""Why a container cannot have what it asks for."""

from __future__ import annotations


class AllocationError(Exception):
    """A container cannot have what it asks for. reason: of the pod that is refused; the texts are upstream's."""

    reason = "UnexpectedAdmissionError"

    @property
    def message(self) -> str:
        """The refused pod's message."""
        if self.reason == AllocationError.reason:
            return f"Allocate failed due to {self}, which is unexpected"
        return str(self)


class TopologyAffinityError(AllocationError):
    """There is no place on the machine that the topology manager's policy takes."""

    reason = "TopologyAffinityError"

    def __init__(self) -> None:
        super().__init__("Resources cannot be allocated with Topology locality")
