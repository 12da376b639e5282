"""Shows the examples of docstrings as code."""

import re

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^(?:\.\.\. |\S).*\n?)*", re.M)


class Examples(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            shown = EXAMPLE.sub(lambda m: f"```python\n{m[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = shown
