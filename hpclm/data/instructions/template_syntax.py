"""Whether a chat template is one of Jinja's. Without transformers."""

from __future__ import annotations

import re


def template_fault(text: str) -> str | None:
    """What Jinja says of it, with the line; None for nothing, or where this machine has no Jinja.

    The tags are those that transformers gives chat templates (utils/chat_template_utils.py): break and continue, and
    `generation` around answers.
    """
    try:
        from jinja2 import Environment, TemplateSyntaxError, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
    except ImportError:
        return None

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    try:
        Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], autoescape=True).parse(text)
    except TemplateSyntaxError as error:
        return f"is no template of Jinja ({' '.join(str(error.message).split())[:200]}, line {error.lineno})"
    except RecursionError:
        return "is no template of Jinja (nested too deeply)"
    return None


def marks_answers(template: str) -> bool:
    """Whether a chat template says itself what the model writes, by `{% generation %}` (transformers,
    utils/chat_template_utils.py)."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def opens_answers(template: str) -> bool:
    """Whether a chat template can end where an answer begins."""
    return "add_generation_prompt" in template
