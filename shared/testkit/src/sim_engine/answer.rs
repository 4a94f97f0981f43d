//! The words of an answer, written once when the simulator starts.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};

use super::NAME;

/// Said over and over, one word a token.
const WORDS: [&str; 13] = [
    "This ",
    "answer ",
    "is ",
    "simulated ",
    "by ",
    "Berth: ",
    "no ",
    "model ",
    "has ",
    "read ",
    "your ",
    "request. ",
    "\n",
];

/// Which of the two text routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Completion,
}

/// Prebuilt SSE chunks of one route.
struct Chunks {
    /// Chat opens with a chunk that names the role.
    open: Option<Bytes>,
    words: Vec<Bytes>,
    stop: Bytes,
    length: Bytes,
}

/// All that can be said beforehand.
pub(super) struct Script {
    id: String,
    created: u64,
    chat: Chunks,
    completion: Chunks,
    done: Bytes,
}

impl Script {
    pub(super) fn new(id: &str) -> Self {
        let created =
            SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default();
        let build = |shape| Chunks {
            open: (shape == Shape::Chat).then(|| {
                let role = json!({"role": "assistant", "content": ""});
                event(&chunk(
                    shape,
                    id,
                    created,
                    &json!([{"index": 0, "delta": role, "finish_reason": null}]),
                ))
            }),
            words: WORDS.iter().map(|word| word_event(shape, id, created, word)).collect(),
            stop: event(&chunk(shape, id, created, &last_choice(shape, "stop"))),
            length: event(&chunk(shape, id, created, &last_choice(shape, "length"))),
        };
        Self {
            chat: build(Shape::Chat),
            completion: build(Shape::Completion),
            done: Bytes::from_static(b"data: [DONE]\n\n"),
            id: id.into(),
            created,
        }
    }

    pub(super) fn created(&self) -> u64 {
        self.created
    }

    fn chunks(&self, shape: Shape) -> &Chunks {
        match shape {
            Shape::Chat => &self.chat,
            Shape::Completion => &self.completion,
        }
    }

    /// The chunk before the first token, where there is one.
    pub(super) fn open(&self, shape: Shape) -> Option<Bytes> {
        self.chunks(shape).open.clone()
    }

    /// The `n`th token's chunk.
    pub(super) fn word(&self, shape: Shape, n: u32) -> Bytes {
        let words = &self.chunks(shape).words;
        usize::try_from(n).ok().and_then(|n| words.get(n % words.len().max(1))).cloned().unwrap_or_default()
    }

    /// A chunk with this text.
    pub(super) fn text(&self, shape: Shape, text: &str) -> Bytes {
        word_event(shape, &self.id, self.created, text)
    }

    /// What follows the last token.
    pub(super) fn close(&self, shape: Shape, cut_short: bool, usage: Option<&Value>) -> Vec<Bytes> {
        let chunks = self.chunks(shape);
        let mut tail = vec![if cut_short { chunks.length.clone() } else { chunks.stop.clone() }];
        if let Some(usage) = usage {
            let mut body = chunk(shape, &self.id, self.created, &json!([]));
            set(&mut body, "usage", usage.clone());
            tail.push(event(&body));
        }
        tail.push(self.done.clone());
        tail
    }

    /// The whole answer of a request that does not stream.
    pub(super) fn whole(&self, shape: Shape, text: &str, cut_short: bool, usage: &Value) -> Value {
        let finish = if cut_short { "length" } else { "stop" };
        let choice = match shape {
            Shape::Chat => {
                let message = json!({"role": "assistant", "content": text});
                json!([{"index": 0, "message": message, "finish_reason": finish, "logprobs": null}])
            }
            Shape::Completion => {
                json!([{"index": 0, "text": text, "finish_reason": finish, "logprobs": null}])
            }
        };
        let mut body = chunk(shape, &self.id, self.created, &choice);
        if shape == Shape::Chat {
            set(&mut body, "object", "chat.completion".into());
        }
        set(&mut body, "usage", usage.clone());
        body
    }
}

/// The first `tokens` words.
pub(super) fn words(tokens: u32) -> String {
    WORDS.iter().cycle().take(usize::try_from(tokens).unwrap_or(usize::MAX)).copied().collect()
}

/// OpenAI's usage object; a prompt is taken to have a token for every four bytes.
pub(super) fn usage(prompt_bytes: usize, completion: u32) -> Value {
    let prompt = u64::try_from(prompt_bytes.div_ceil(4)).unwrap_or(u64::MAX);
    let total = prompt.saturating_add(completion.into());
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total})
}

fn chunk(shape: Shape, id: &str, created: u64, choices: &Value) -> Value {
    let (answer, object) = match shape {
        Shape::Chat => ("chatcmpl-simulated", "chat.completion.chunk"),
        Shape::Completion => ("cmpl-simulated", "text_completion"),
    };
    json!({
        "id": answer, "object": object, "created": created, "model": id,
        "system_fingerprint": NAME, "choices": choices,
    })
}

fn word_event(shape: Shape, id: &str, created: u64, text: &str) -> Bytes {
    let choice = match shape {
        Shape::Chat => json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]),
        Shape::Completion => json!([{"index": 0, "text": text, "finish_reason": null}]),
    };
    event(&chunk(shape, id, created, &choice))
}

fn last_choice(shape: Shape, finish: &str) -> Value {
    match shape {
        Shape::Chat => json!([{"index": 0, "delta": {}, "finish_reason": finish}]),
        Shape::Completion => json!([{"index": 0, "text": "", "finish_reason": finish}]),
    }
}

fn set(body: &mut Value, key: &str, value: Value) {
    if let Some(fields) = body.as_object_mut() {
        fields.insert(key.into(), value);
    }
}

fn event(body: &Value) -> Bytes {
    Bytes::from(format!("data: {body}\n\n"))
}
