"""Approve: propose a version that is ready, and record the decision on it."""

from prefect_augment.params import Answer, Destination
from prefect_augment.publish.proposal import (
    Proposal,
    decide,
    propose,
    read_proposal,
    request_markdown,
)
from prefect_augment.report.run_summary import where
from prefect_augment.schema import ApprovalDecision, Release, ReportRef
from prefect_augment.tasks._display import artifact_key, dataset_slug, markdown_artifact
from prefect_augment.tasks._runtime import open_destination, open_root, step


@step(lambda p: f"propose {dataset_slug(p['release'].dataset.root)}")
def propose_dataset(release: Release, report: ReportRef) -> Proposal:
    """Leave a version that is ready as a proposal, for somebody to approve or reject.

    Parameters
    ----------
    release : Release
        Is published as it is once the proposal is approved.
    report : ReportRef
        What the approver reads.

    Returns
    -------
    Proposal
        Also shown as an artifact. The same inputs are proposed once.
    """
    store = open_root(release.dataset)
    proposal = propose(release, report, store)
    page = store.place(f"{report.prefix}/report.html")
    text = request_markdown(proposal, report_link=f"Report: {where('report.html', page)}.")
    key = artifact_key("approval", dataset_slug(release.dataset.root))
    markdown_artifact(key, f"{text}\n\nProposal `{proposal.id}`.", "What waits for approval")
    return proposal


@step(lambda p: f"{p['answer'].decision} {p['proposal']}")
def decide_proposal(
    destination: Destination, proposal: str = "", answer: Answer = Answer()
) -> tuple[Proposal, ApprovalDecision]:
    """Record a decision on a proposal; this task publishes nothing.

    Parameters
    ----------
    destination : Destination
        The dataset that has the proposal.
    proposal : str
        Its id or the start of it; empty for the only open one.
    answer : Answer
        The decision.

    Returns
    -------
    tuple of Proposal and ApprovalDecision

    Raises
    ------
    ParameterError
        If there is no such proposal, an amount is raised, or another decision was recorded before.
    """
    store = open_destination(destination)
    pending = read_proposal(store, proposal)
    decision = decide(store, pending, answer)
    # The proposal may come from another machine, where the same folder has another path.
    return pending.moved(store.uri, destination.storage_block), decision
