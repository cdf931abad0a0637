#!/usr/bin/env python3
"""Compare the decoders of provider streams with an independent reading of recorded streams.

    streams.py <folder> <result lines of dialects/examples/replay.rs on standard input>

The folder has anthropic/*.jsonl and openai-chat/*.jsonl, one JSON event per line.
"""

import json
import pathlib
import sys

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def anthropic(events):
    text = reasoning = b""
    usage, stop = {}, None
    for event in events:
        kind, delta = event["type"], event.get("delta", {})
        if kind == "message_start":
            usage.update(event["message"]["usage"])
        elif kind == "message_delta":
            usage.update({name: value for name, value in event.get("usage", {}).items() if value is not None})
            stop = delta.get("stop_reason") or stop
        elif kind == "content_block_delta":
            text += delta.get("text", "").encode()
            reasoning += delta.get("thinking", "").encode()
    return {
        "text_bytes": len(text),
        "reasoning_bytes": len(reasoning),
        "input_tokens": usage.get("input_tokens", 0),
        "output_tokens": usage.get("output_tokens", 0),
        "cache_read_tokens": usage.get("cache_read_input_tokens", 0),
        "cache_write_tokens": usage.get("cache_creation_input_tokens", 0),
        "stop_reason": stop,
    }


def openai(events):
    text = reasoning = b""
    usage, stop = {}, None
    for event in events:
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            delta = choice.get("delta", {})
            text += (delta.get("content") or "").encode()
            reasoning += (delta.get("reasoning_content") or delta.get("reasoning") or "").encode()
            stop = choice.get("finish_reason") or stop
    prompt, cached = usage["prompt_tokens"], usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    # Some providers count reasoning in the total only.
    output = max(usage["completion_tokens"], usage["total_tokens"] - prompt)
    return {
        "text_bytes": len(text),
        "reasoning_bytes": len(reasoning),
        "input_tokens": prompt - cached,
        "output_tokens": output,
        "cache_read_tokens": cached,
        "cache_write_tokens": 0,
        "stop_reason": STOPS[stop],
    }


def main():
    folder, results = pathlib.Path(sys.argv[1]), [json.loads(line) for line in sys.stdin]
    expected = {}
    for subfolder, read in (("anthropic", anthropic), ("openai-chat", openai)):
        for path in (folder / subfolder).glob("*.jsonl"):
            events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            expected[path.name, subfolder] = read(events)
    wrong = 0
    if len(results) != len(expected):
        sys.exit(f"streams: {len(results)} results for {len(expected)} recordings")
    for (name, subfolder), wanted in sorted(expected.items()):
        found = [result for result in results if result["file"] == name]
        if not any(all(result[field] == value for field, value in wanted.items()) for result in found):
            wrong += 1
            print(f"streams: {subfolder}/{name}: expected {wanted}, decoded {found}")
    print(f"streams: {len(expected) - wrong} of {len(expected)} recordings decoded as expected")
    sys.exit(wrong > 0)


main()
