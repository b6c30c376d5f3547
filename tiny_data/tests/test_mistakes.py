"""The mistakes are what they say; `python -m tiny_data.mistakes` asks the tests about them."""

from tiny_data import mistakes

SOURCE = mistakes.SUBJECT.read_text()
SMALL = '''def f(x, k):
    """A note: x + 1."""
    assert k > 0, f"k={k + 1}"
    return reduce(x[1:], "B h d -> B d", "mean", k=k) - k.detach()
'''


def lines_after(source, definition):
    found = mistakes.mistakes_by_rule(source)
    return [mistakes.lines(source, one)[2] for one in found if one.definition == definition]


def test_every_mistake_of_the_field_is_another_program():
    found = mistakes.mistakes_of_the_field(SOURCE)
    assert len({mistakes.with_mistake(SOURCE, one) for one in found}) == len(found) > 80
    assert all(mistakes.is_another_program(SOURCE, one) for one in found)


def test_every_rule_makes_its_mistakes():
    asserts = [line for line in lines_after(SMALL, "f") if line.startswith("assert")]
    assert asserts == [f'assert k {now}, f"k={{k + 1}}"' for now in (">= 0", "> 1", "> -1")]
    returns = " ".join(line for line in lines_after(SMALL, "f") if line.startswith("return"))
    for now in ("+ k.detach()", "x[2:]", "x[:]", "'h B d ->", "'sum'", "'mean') - k"):
        assert now in returns, now
    assert 'return reduce(x[1:], "B h d -> B d", "mean", k=k) - k' in lines_after(SMALL, "f")
    assert "A note" not in " ".join(lines_after(SMALL, "f"))


def test_what_is_called_equal_is_there():
    for key in mistakes.EQUAL:
        definition, line = key.split(": ", 1)
        assert line in lines_after(SOURCE, definition)


def test_a_sample_has_every_rule_and_is_the_same_again():
    found = mistakes.sample(SMALL, 12, seed=1)
    assert {one.rule for one in found} == {rule.__name__ for rule in mistakes.RULES}
    assert found == mistakes.sample(SMALL, 12, seed=1) != mistakes.sample(SMALL, 12, seed=2)
