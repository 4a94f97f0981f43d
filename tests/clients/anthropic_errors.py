"""What the anthropic client makes of errors, the engine's own and Berth's: their type, message and request.

Usage: python anthropic_errors.py BASE_URL MODEL
"""

import sys

import anthropic

base_url, model = sys.argv[1:]
claude = anthropic.Anthropic(base_url=base_url, api_key="none", timeout=60, max_retries=0)
messages = [{"role": "user", "content": "Which berth is free?"}]


def says(**more):
    return claude.messages.create(**{"model": model, "messages": messages, "max_tokens": 4, **more})


wrong = {"extra_body": {"temperature": "hot"}}
cases = {
    "the engine's": (lambda: says(**wrong), "BadRequestError", "invalid_request_error"),
    "the engine's, of a stream": (lambda: list(says(stream=True, **wrong)), "BadRequestError", "invalid_request_error"),
    "the engine's, of a count": (
        lambda: claude.messages.count_tokens(model=model, messages=[{"role": "user", "content": 5}]),
        "BadRequestError",
        "invalid_request_error",
    ),
    "Berth's": (lambda: says(model="none"), "NotFoundError", "not_found_error"),
}
for name, (ask, wanted, kind) in cases.items():
    try:
        ask()
        sys.exit(f"{name}: no error")
    except anthropic.APIStatusError as error:
        assert type(error).__name__ == wanted, f"{name}: {error!r}"
        assert error.type == kind, f"{name}: {error.body}"
        assert error.api_message, f"{name}: {error.body}"
        assert error.body["type"] == "error" and error.body["request_id"] == error.request_id, f"{name}: {error.body}"
        print(name, error.status_code, error.api_message)
