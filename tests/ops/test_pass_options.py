"""The options of passes end with their contexts."""

from telecine.ops import pass_options


def test_the_end_of_one_context_leaves_the_options_of_others():
    """They need not end in the order in which they began, as in generators."""
    twice = pass_options.differentiated_twice()
    shared = pass_options.shared_spectral_norms()
    twice.__enter__()
    shared.__enter__()
    norms = pass_options.pass_options().spectral_norms
    twice.__exit__(None, None, None)
    assert not pass_options.pass_options().is_differentiated_twice
    assert pass_options.pass_options().spectral_norms is norms
    shared.__exit__(None, None, None)
    assert not pass_options.pass_options().is_differentiated_twice
    assert pass_options.pass_options().spectral_norms is None
