"""Templates: complete, escaped, and never half-filled."""

import pytest
from jinja2 import meta

from providers.errors import Refused
from providers.mail import render
from providers.mail.templates import _FOLDER, _environment, names

WELCOME = {"name": "Ada", "company": "Acme", "url": "https://acme.example/start"}


def variables_of(name: str) -> set[str]:
    sources = [(_FOLDER / f"{name}.{form}").read_text("utf-8") for form in ("txt", "html")]
    return set().union(*(meta.find_undeclared_variables(_environment().parse(source)) for source in sources))


@pytest.mark.parametrize("name", names())
def test_every_template_fills_with_its_own_variables_and_needs_each(name: str) -> None:
    variables = {variable: f"https://{variable}.example" for variable in variables_of(name)}
    content = render(name, variables)
    assert content.subject
    assert content.subject.isprintable()
    for value in variables.values():
        assert value in content.subject + content.text
    assert content.html.startswith("<!doctype html>")
    for missing in variables:
        with pytest.raises(Refused, match=missing):
            render(name, {key: value for key, value in variables.items() if key != missing})


def test_names_cover_what_the_product_tells_people() -> None:
    expected = {
        "welcome", "password_reset", "document_processed", "report_ready", "invoice_due", "payment_received",
        "payment_failed", "sync_failed", "critical_alert",
    }  # fmt: skip
    assert expected <= set(names())


def test_an_unknown_template_is_refused_and_no_path_leads_out() -> None:
    for name in ("nonesuch", "../message", "layout", "welcome.txt", ""):
        with pytest.raises(Refused, match="unknown template"):
            render(name, WELCOME)


def test_html_is_escaped_and_text_is_not() -> None:
    content = render("welcome", WELCOME | {"name": "<script>alert('x')</script> & co"})
    assert "<script>" not in content.html
    assert "&lt;script&gt;" in content.html
    assert "<script>alert('x')</script> & co" in content.subject


def test_variables_are_never_run_as_templates() -> None:
    content = render("welcome", WELCOME | {"name": "{{ company.__class__ }}"})
    assert "{{ company.__class__ }}" in content.subject


def test_a_link_that_would_run_a_script_is_refused() -> None:
    with pytest.raises(Refused, match="url"):
        render("welcome", WELCOME | {"url": "javascript:alert(1)"})


def test_a_line_break_stays_in_the_subject_where_the_message_refuses_it() -> None:
    assert render("welcome", WELCOME | {"name": "Ada\nBcc: x@y.z"}).subject.endswith("Ada\nBcc: x@y.z")
