"""Publish a version that waits for approval, or record that it was rejected."""

import logging
import time

from prefect_augment.flows._approval import not_published, publish_proposal
from prefect_augment.flows._flow import flow
from prefect_augment.flows._inputs import running
from prefect_augment.params import Answer, Destination
from prefect_augment.schema import RunResult
from prefect_augment.tasks._runtime import run
from prefect_augment.tasks.approve import decide_proposal

logger = logging.getLogger(__name__)


@flow("approve", "{answer.decision} {destination.uri}")
def approve(
    destination: Destination = Destination(), proposal: str = "", answer: Answer = Answer()
) -> RunResult:
    """Decide on a version that a run left as a proposal; an approved one is published at once.

    Args:
        destination: The dataset that has the proposal.
        proposal: The proposal's id, or the start of it. Empty: the only open one.
        answer: Approve or reject, with fewer records where wanted.
    """
    started = time.monotonic()
    with running(destination, steps=("write the report", "publish"), job="approve"):
        pending, decision = run(decide_proposal, destination, proposal, answer)
        logger.info("%s", decision.sentence)
        if decision.decision == "reject":
            return not_published(pending, decision, started=started)
        return publish_proposal(pending, decision, started=started)
