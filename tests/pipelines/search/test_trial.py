"""A trial without Ray's bookkeeping."""

from pipelines.search.trial import Trial, TrialOutcome


def test_values_that_do_not_go_together_are_a_failed_trial_that_does_not_start_again(run, tmp_path):
    """It raises nothing, after which the search would start it again."""
    trial = Trial.__new__(Trial)
    values = {"model.heads": 4, "model.dim": 20}
    trial.setup({"number": 0, "values": values}, run, None, tmp_path)
    result = trial.step()
    trial.cleanup()
    assert result["done"] is True
    end = TrialOutcome.of(result)
    assert end.state == "failed"
    assert end.reason.startswith("model.heads: dim / heads must be an even number, got 20 / 4")
