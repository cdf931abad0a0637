"""Runs the Python sample of docs/webhooks.md on deliveries that Karta signed.

Reads the deliveries from stdin; raises at the first failed check.
"""

import json
import platform
import re
import sys
from pathlib import Path

page = (Path(__file__).parents[2] / "docs/webhooks.md").read_text(encoding="utf-8")
printed = {}
exec(re.search(r"^### Python\n+```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1], printed)

cases = json.load(sys.stdin)
for case in cases:
    try:
        printed["verify"](case["body"].encode(), case["headers"]["karta-signature"], case["secret"])
        accepted = True
    except ValueError:
        accepted = False
    if accepted != case["is_genuine"]:
        raise AssertionError(f"{case['what']} is {'accepted' if accepted else 'refused'}")

print(f"webhooks: Python {platform.python_version()}: {len(cases)} checks")
