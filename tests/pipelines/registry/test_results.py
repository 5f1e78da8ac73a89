"""What the stages after the search store."""

from pipelines.registry.results import Probed, training_key


def test_trainings_of_one_arm_have_a_key_and_those_of_another_have_another(run):
    same = run.replace({"seed": run.seed + 1, "train.tokens": 2 * run.train.tokens})
    assert training_key(same) == training_key(run)
    others = {"model.depth": 1, "train.learning_rate": 0.5, "model.residual": "standard"}
    changed = [run.replace({key: value}) for key, value in others.items()]
    assert len({training_key(one) for one in (run, *changed)}) == 1 + len(others)


def test_a_training_has_the_tokens_that_its_arm_has_in_the_time_of_the_budget(run):
    probed = Probed(1.0, {}, {}, tokens={training_key(run): 512})
    assert probed.tokens_of(run.replace({"seed": 3})) == 512
    assert probed.tokens_of(run.replace({"model.depth": 1})) is None
