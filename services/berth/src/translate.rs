//! `berth translate`: a message of the bus as JSON, for `nats sub --translate`.
//!
//! Bytes (request bodies, output) are shown as their number, so that no prompt or answer is printed.

use std::io::{Read, Write};

use rmpv::Value as Pack;
use serde_json::{Map, Value};

use crate::exit::{Exit, Failure};

/// Far above what nats-server takes for one message.
const LIMIT: u64 = 128 * 1024 * 1024;

/// Deeper than any message of ours, and shallow enough for any stack.
const DEPTH: usize = 128;

/// Translates standard input to standard output.
pub(crate) fn run() -> Result<Exit, Failure> {
    let mut input = Vec::new();
    std::io::stdin()
        .lock()
        .take(LIMIT)
        .read_to_end(&mut input)
        .map_err(|source| Failure::System { what: "cannot read standard input", source })?;
    if input.is_empty() {
        // An empty message is one too, so this is no failure.
        eprintln!("there was no input: give a message on standard input, as `nats sub --translate` does");
    }
    let json = translate(&input).map_err(Failure::Input)?;
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{json}").and_then(|()| output.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(source) => Err(Failure::System { what: "cannot write to standard output", source }),
        Ok(()) => Ok(Exit::Done),
    }
}

/// Reads msgpack, or JSON (events and KV entries), and gives JSON.
fn translate(input: &[u8]) -> Result<Value, String> {
    if input.is_empty() {
        return Ok(Value::Null);
    }
    // No message of ours is a bare small number, which is what msgpack would read in a brace or bracket.
    if input.first().is_some_and(|byte| matches!(byte, b'{' | b'[' | b' ' | b'\n'))
        && let Ok(value) = serde_json::from_slice(input)
    {
        return Ok(value);
    }
    // The one byte that msgpack never uses; the decoder takes it for nil.
    if input.first() == Some(&0xc1) {
        return Err("this is no msgpack message: byte 0xc1 begins no value".into());
    }
    let mut rest = input;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, DEPTH).map_err(|error| {
        format!(
            "this is no msgpack message: {error}, at byte {} of {}",
            input.len() - rest.len(),
            input.len()
        )
    })?;
    if !rest.is_empty() {
        let read = input.len() - rest.len();
        return Err(format!(
            "this is no msgpack message: a value ends at byte {read}, and {} more follow",
            rest.len()
        ));
    }
    Ok(to_json(value))
}

fn to_json(value: Pack) -> Value {
    match value {
        Pack::Nil => Value::Null,
        Pack::Boolean(flag) => flag.into(),
        Pack::Integer(number) => number
            .as_u64()
            .map(Value::from)
            .or_else(|| number.as_i64().map(Value::from))
            .unwrap_or(Value::Null),
        Pack::F32(number) => float(number.into()),
        Pack::F64(number) => float(number),
        Pack::String(text) => {
            let bytes = text.as_bytes().len();
            text.into_str().map_or_else(|| format!("<{bytes} bytes, not UTF-8>").into(), Value::from)
        }
        Pack::Binary(bytes) => format!("<{} bytes>", bytes.len()).into(),
        Pack::Array(items) => items.into_iter().map(to_json).collect(),
        Pack::Map(entries) => entries
            .into_iter()
            .map(|(key, value)| (key_text(key), to_json(value)))
            .collect::<Map<_, _>>()
            .into(),
        Pack::Ext(kind, bytes) => format!("<extension {kind}, {} bytes>", bytes.len()).into(),
    }
}

/// JSON knows only text as keys.
fn key_text(key: Pack) -> String {
    match to_json(key) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn float(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}

#[cfg(test)]
mod tests {
    use berth_wire::{Body, Job, JobId, Route, Timestamp};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_is_readable_and_its_prompt_is_not() {
        let body = br#"{"model": "m", "messages": [{"role": "user", "content": "my secret"}]}"#.as_slice();
        let job = Job {
            id: JobId(7),
            model: "m".into(),
            adapter: None,
            route: Route::ChatCompletions,
            gateway: "gw".into(),
            stream: true,
            session: None,
            submitted_at: Timestamp(5),
            deadline: None,
            hurried: false,
            window: 1024,
            traceparent: None,
            class: berth_wire::Class::Standard,
            key: None,
            content_type: None,
            target: None,
            body: Body::Inline(body.into()),
        };
        let shown = translate(&job.encode().unwrap()).unwrap();
        assert_eq!(shown["model"], "m");
        assert_eq!(shown["route"], "chat_completions");
        assert_eq!(shown["body"], format!("<{} bytes>", body.len()));
        assert!(!shown.to_string().contains("secret"));
    }

    #[test]
    fn nested_values_and_odd_keys_survive() {
        let pack = Pack::Map(vec![
            (1.into(), Pack::Array(vec![Pack::Nil, Pack::F64(0.5), Pack::F64(f64::NAN), (-3).into()])),
            ("deep".into(), Pack::Map(vec![("b".into(), Pack::Binary(vec![0; 9]))])),
            ("ext".into(), Pack::Ext(4, vec![1, 2])),
        ]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &pack).unwrap();
        assert_eq!(
            translate(&bytes).unwrap(),
            json!({"1": [null, 0.5, "NaN", -3], "deep": {"b": "<9 bytes>"}, "ext": "<extension 4, 2 bytes>"})
        );
    }

    #[test]
    fn json_passes_and_an_empty_message_is_null() {
        assert_eq!(translate(br#" {"kind": "job_ended"}"#).unwrap(), json!({"kind": "job_ended"}));
        assert_eq!(translate(b"").unwrap(), Value::Null);
    }

    #[test]
    fn garbage_is_refused_in_words() {
        for garbage in [b"\xc1".as_slice(), b"\x82\xa5mod", b"\xdf\xff\xff\xff\xff", b"hello world"] {
            let why = translate(garbage).unwrap_err();
            assert!(why.starts_with("this is no msgpack message"), "{why}");
        }
        let deep = vec![0x91; 100_000];
        assert!(translate(&deep).is_err());
    }
}
