"""Verifies every DKIM signature of messages with dkimpy. Standard input: a JSON object with `records` (TXT by name) and
`messages` (files). Standard output: for each message its good and its bad signatures' selectors."""

import json
import sys

import dkim

given = json.load(sys.stdin)


def record(name, timeout=5):
    return given["records"].get(name.decode().rstrip("."), "").encode() or None


results = []
for path in given["messages"]:
    with open(path, "rb") as file:
        message = dkim.DKIM(file.read(), minkey=1024)
    good, bad = [], []
    fields = [value for name, value in message.headers if name.lower() == b"dkim-signature"]
    for index, field in enumerate(fields):
        tags = dkim.util.parse_tag_value(field)
        try:
            fine = message.verify(idx=index, dnsfunc=record)
        except dkim.DKIMException as error:
            fine = False
            print(f"{path}: {error}", file=sys.stderr)
        (good if fine else bad).append(tags[b"s"].decode())
    results.append({"good": good, "bad": bad})
print(json.dumps(results))
