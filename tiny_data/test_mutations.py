"""The list of mutations fits the file; `python -m tiny_data.mutations` runs them."""

import ast

import pytest

from tiny_data import mutations

SOURCE = mutations.SUBJECT.read_text()

def test_every_mutation_is_another_line_in_its_place():
    changed = {mutations.mutated(SOURCE, one[0], *one[2:]) for one in mutations.mutations()}
    assert SOURCE not in changed and len(changed) == len(mutations.mutations()) > 250

def test_the_readme_counts_them():
    readme = mutations.SUBJECT.with_name("README.md").read_text()
    assert f"makes {len(mutations.mutations())} small mistakes" in readme

def test_a_line_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="attend has 0 lines like: scores = 3"):
        mutations.mutated(SOURCE, "attend", "scores = 3", "scores = 4")

@pytest.mark.parametrize("word", ("-h", "--help"))
def test_help_is_how_it_is_called(word, capsys):
    assert mutations.main([word]) == 0
    assert "python -m tiny_data.mutations attend" in capsys.readouterr().out

def test_every_class_that_is_asked_is_there():
    nodes = ast.parse(mutations.TESTS.read_text()).body
    known = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    for definition, tests, _, _ in mutations.mutations():
        assert set(tests.split(" or ")) <= known, definition
