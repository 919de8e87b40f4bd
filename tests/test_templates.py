"""Templates: what is escaped, and what a missing name does."""

import jinja2
import pytest

from hpgr.templates import rendered


def page(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_html_is_escaped_and_markdown_is_not(tmp_path):
    found = [
        rendered(page(tmp_path, name, "{{ title }}"), {}, title="a <b> & c")
        for name in ("page.html.j2", "card.md.j2")
    ]
    assert found == ["a &lt;b&gt; &amp; c", "a <b> & c"]


def test_a_name_that_is_not_given_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        rendered(page(tmp_path, "page.html.j2", "{{ missing }}"), {})


def test_filters_are_the_callers(tmp_path):
    template = page(tmp_path, "page.html.j2", "{{ share|percent }}")
    assert rendered(template, {"percent": "{:.0%}".format}, share=0.25) == "25%"
