"""Whether runs that were divided in other ways left the same."""

from fluxsmith.storage import checkpoint as checkpoints

STATE = ("model", "ema", "optimizer", "window", "data")


def same_states(one, other):
    """Whether two runs left the same but for the settings in their checkpoints."""
    files = {name for name in one if name.endswith(".pt")}
    assert one.keys() == other.keys()
    return [name for name in one if name not in files and one[name] != other[name]] == []


def assert_same_checkpoints(one, other):
    """Of two folders, however they were written."""
    for (step, path), (again, beside) in zip(
        checkpoints.find(one), checkpoints.find(other), strict=True
    ):
        assert step == again
        state, found = checkpoints.load(path), checkpoints.load(beside)
        for key in STATE:
            assert_equal(state[key], found[key], f"{key} of step {step}")
        own = (each.get("objective") for each in (state, found))  # few have any
        assert_equal(*own, f"what the objective trains, of step {step}")


def assert_equal(one, other, name):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{name}.{i}")
    elif hasattr(one, "equal"):
        assert one.equal(other), name
    else:
        assert one == other, name
