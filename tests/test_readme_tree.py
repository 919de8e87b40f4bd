"""README.md's tree names every file of today, with the first line of its docstring."""

import readme_tree


def test_readme_holds_the_tree_as_the_files_are():
    readme = readme_tree.README.read_text()
    assert readme == readme_tree.written(readme), "run `make tree`"


def test_every_module_is_in_the_tree():
    tree = readme_tree.tree()
    for file in readme_tree.tracked():
        if file.startswith(("hpgr/", "flows/", "host/")) and file.endswith(".py"):
            assert file.endswith("__init__.py") or f"({file})" in tree
