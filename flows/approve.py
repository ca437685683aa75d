"""Publish a version that waits for approval, or record that it was rejected."""

from __future__ import annotations

import logging
import time

from prefect import flow

from prefect_augment.flows._approval import release
from prefect_augment.flows._inputs import running
from prefect_augment.params import Answer, Destination
from prefect_augment.report.run_summary import summarise
from prefect_augment.schema.base import RunResult
from prefect_augment.tasks._runtime import conclude, open_destination, run
from prefect_augment.tasks.approve import decide_proposal

__all__ = ["approve"]

logger = logging.getLogger(__name__)


@flow(name="approve", flow_run_name="{answer.decision} {destination.uri}", persist_result=False)
def approve(
    destination: Destination = Destination(),
    proposal: str = "",
    answer: Answer = Answer(),
) -> RunResult:
    """Decide on a version that a run left as a proposal; an approved one is published at once.

    Args:
        destination: The dataset that has the proposal.
        proposal: The proposal's id, or the start of it. Empty: the only open one.
        answer: Approve or reject, with fewer records where wanted.
    """
    started = time.monotonic()
    with running(destination):
        found, decision = run(decide_proposal, destination, proposal, answer)
        logger.info("%s", decision.sentence)
        if decision.decision == "reject":
            result = summarise(
                found.dataset,
                found.plan,
                status="rejected",
                started=started,
                scores=found.scores,
                recipe=found.recipe,
                verdict=found.verdict,
                report=found.report,
                proposal=found.id,
                approval=decision,
            )
            return conclude(result, found.dataset.root, found.dataset.block)
        commit, recipe, page = release(found, decision)
        result = summarise(
            found.dataset,
            found.plan,
            status="published" if commit.created else "unchanged",
            started=started,
            store=open_destination(destination),
            commit=commit,
            scores=found.scores,
            recipe=recipe,
            verdict=found.verdict,
            report=page,
            proposal=found.id,
            approval=decision,
        )
        return conclude(result, found.dataset.root, found.dataset.block)
