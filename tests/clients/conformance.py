"""What the openai and anthropic clients see of one endpoint, scenario by scenario, as JSON lines.

Usage: python conformance.py BASE_URL MODEL

Run against an engine itself and against Berth in front of it, both must print the same: what differs between any two
answers (ids, times) is left out. Nothing here knows which of the two it talks to.
"""

import json
import sys

import anthropic
import openai

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=60, max_retries=0)
claude = anthropic.Anthropic(base_url=base_url, api_key="none", timeout=60, max_retries=0)

messages = [{"role": "user", "content": "Which berth is free?"}]
# An engine that reuses its cache computes in another order, and noise turns on the last bit.
own = {"cache_prompt": False, "chat_template_kwargs": {"enable_thinking": False}}
same = {"temperature": 0, "seed": 7, "extra_body": own}
thinking = {"extra_body": {"cache_prompt": False, "chat_template_kwargs": {"enable_thinking": True}}}
tool = {
    "type": "function",
    "function": {
        "name": "assign",
        "description": "Assigns a berth",
        "parameters": {
            "type": "object",
            "properties": {"berth": {"enum": [1, 2]}},
            "required": ["berth"],
            "additionalProperties": False,
        },
    },
}
# Random weights call no tool by themselves: they are made to begin with `{`, whose byte is this token of the tiny model, and
# from there on the grammar has the rest be a call.
forced = {"tool_choice": "required", "logit_bias": {"126": 100}, "max_tokens": 200}
schema = {
    "type": "json_schema",
    "json_schema": {
        "name": "berth",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"free": {"type": "boolean"}},
            "required": ["free"],
            "additionalProperties": False,
        },
    },
}
# One red pixel.
pixel = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
# How much of a prompt was cached depends on what was asked before.
differs = {"id", "created", "created_at", "completed_at", "timings", "request_id", "call_id", "item_id", "signature"}
differs |= {"cached_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"}


def plain(value):
    """A client's object as JSON, without what differs between any two answers."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in differs}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def text(chunks):
    """A stream's text and what else it says; how tokens were cut into chunks is the engine's own affair."""
    chunks = list(chunks)
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    joined, reasoning, calls = {}, {}, {}
    for choice in deltas:
        delta = choice.delta
        joined[choice.index] = joined.get(choice.index, "") + (delta.content or "")
        extra = (delta.model_extra or {}).get("reasoning_content") or ""
        reasoning[choice.index] = reasoning.get(choice.index, "") + extra
        for call in delta.tool_calls or []:
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
    return {
        "text": joined,
        "reasoning": reasoning,
        "calls": calls,
        "finish": [choice.finish_reason for choice in deltas if choice.finish_reason],
        "usage": [plain(chunk.usage) for chunk in chunks if chunk.usage],
        "without_choices": sum(1 for chunk in chunks if not chunk.choices),
        "logprobs": [plain(choice.logprobs) for choice in deltas if choice.logprobs],
        "object": sorted({chunk.object for chunk in chunks}),
        "model": sorted({chunk.model for chunk in chunks}),
    }


def chat(**more):
    return client.chat.completions.create(**{"model": model, "messages": messages, "max_tokens": 12, **same, **more})


def image():
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": pixel}}]
    return chat(messages=[{"role": "user", "content": content}])


def events(stream):
    """The kinds of a stream's events in their order, repeats once, and its text."""
    kinds, said = [], []
    for event in stream:
        if not kinds or kinds[-1] != event.type:
            kinds.append(event.type)
        delta = getattr(event, "delta", None)
        said.append(delta if isinstance(delta, str) else getattr(delta, "text", None) or "")
    return {"kinds": kinds, "text": "".join(said)}


def claude_says(**more):
    extra = {"temperature": 0, "seed": 7, **own}
    return claude.messages.create(**{"model": model, "messages": messages, "max_tokens": 12, "extra_body": extra, **more})


def claude_streams(**more):
    """The kinds of a message's events, and what its blocks come to."""
    kinds, blocks = [], {}
    for event in claude_says(stream=True, **more):
        if not kinds or kinds[-1] != event.type:
            kinds.append(event.type)
        if event.type == "content_block_delta":
            said = getattr(event.delta, "text", None) or getattr(event.delta, "partial_json", None) or ""
            blocks[event.index] = blocks.get(event.index, "") + said
    return {"kinds": kinds, "blocks": blocks}


assign = {
    "tools": [{"name": "assign", "input_schema": tool["function"]["parameters"]}],
    "tool_choice": {"type": "any"},
    "max_tokens": 200,
}
photo = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": pixel.split(",")[1]}}
usage = {"stream": True, "stream_options": {"include_usage": True}}
scenarios = {
    "chat": lambda: chat(),
    "chat streamed": lambda: text(chat(stream=True)),
    "chat streamed with usage": lambda: text(chat(**usage)),
    "a system prompt and turns": lambda: chat(
        messages=[
            {"role": "system", "content": "You are the harbour master."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Ahoy"},
            *messages,
        ]
    ),
    "reasoning": lambda: chat(**thinking),
    "reasoning streamed": lambda: text(chat(**thinking, **usage)),
    "stop": lambda: chat(stop=["a", "e", " "], max_tokens=64),
    "stop streamed": lambda: text(chat(stop=["a", "e", " "], max_tokens=64, **usage)),
    "several choices": lambda: chat(n=2),
    "several choices streamed": lambda: text(chat(n=2, **usage)),
    "logprobs": lambda: chat(logprobs=True, top_logprobs=2, max_tokens=3),
    "logprobs streamed": lambda: text(chat(logprobs=True, top_logprobs=2, max_tokens=3, stream=True)),
    "a tool that must be called": lambda: chat(tools=[tool], **forced),
    "a tool streamed": lambda: text(chat(tools=[tool], **forced, **usage)),
    "a tool's answer": lambda: chat(
        tools=[tool],
        messages=[
            *messages,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "assign", "arguments": '{"berth":1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "done"},
        ],
    ),
    "a JSON schema": lambda: chat(response_format=schema, max_tokens=64),
    "a JSON schema streamed": lambda: text(chat(response_format=schema, max_tokens=64, stream=True)),
    "an image": image,
    "a wrong parameter": lambda: chat(temperature="hot"),
    "a wrong role": lambda: chat(messages=[{"role": 5, "content": "x"}]),
    "a completion": lambda: client.completions.create(model=model, prompt="Berth", max_tokens=5, **same),
    "a completion streamed": lambda: "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model=model, prompt="Berth", max_tokens=5, stream=True, **same)
    ),
    "embeddings": lambda: client.embeddings.create(model=model, input=["a ship", "a berth"], encoding_format="float"),
    "embeddings in base64": lambda: client.embeddings.create(model=model, input="a ship"),
    "a response": lambda: client.responses.create(model=model, input="Which berth?", max_output_tokens=12, temperature=0),
    "a response streamed": lambda: events(
        client.responses.create(model=model, input="Which berth?", max_output_tokens=12, temperature=0, stream=True)
    ),
    "a message": lambda: claude_says(),
    "a message streamed": lambda: events(claude_says(stream=True)),
    # What of its input was cached it does not count.
    "a message with a tool": lambda: claude_says(**assign).content,
    "a message with a tool streamed": lambda: claude_streams(**assign),
    "a message with a tool's answer": lambda: claude_says(
        tools=assign["tools"],
        messages=[
            *messages,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "assign", "input": {"berth": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "done"}]},
        ],
    ).content,
    "a message with an image": lambda: claude_says(messages=[{"role": "user", "content": [photo]}]),
    "a message with a wrong parameter": lambda: claude_says(extra_body={"temperature": "hot"}),
    "tokens counted": lambda: claude.messages.count_tokens(model=model, messages=messages),
}


def run(scenario):
    try:
        return plain(scenario())
    except anthropic.APIStatusError as error:
        # An engine's words; their shape is Anthropic's through Berth alone.
        return {"status": error.status_code, "message": error.api_message}
    except openai.APIStatusError as error:
        return {"status": error.status_code, "body": plain(error.body)}
    except (openai.APIError, anthropic.APIError) as error:
        return {"error": type(error).__name__, "message": str(error)}


for name, scenario in scenarios.items():
    print(json.dumps([name, run(scenario)], sort_keys=True), flush=True)
