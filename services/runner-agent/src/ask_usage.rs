//! Asks an engine for the token counts of a stream where its client did not, and leaves every other byte as it is. The
//! gateway keeps what is told from clients that did not ask.

use std::ops::Range;

use berth_wire::Route;
use bytes::Bytes;

use crate::spans::{set, splice, values};

/// Whether engines tell the usage of streams on this route only when asked.
pub(crate) fn must_be_asked(route: Route, stream: bool) -> bool {
    stream && matches!(route, Route::ChatCompletions | Route::Completions)
}

/// The body with `stream_options.include_usage` set. One that is no JSON object, or says something else of it than yes or
/// no, stays: the engine says what is wrong with it.
pub(crate) fn ask_for_usage(body: Bytes) -> Bytes {
    let Some(options) = values(&body, "stream_options") else { return body };
    let mut edits: Vec<(Range<usize>, &[u8])> = Vec::new();
    if options.is_empty() {
        return set(body, "stream_options", r#"{"include_usage":true}"#);
    }
    for span in options {
        let value = body.get(span.clone()).unwrap_or_default();
        if value == b"null" {
            edits.push((span, br#"{"include_usage":true}"#));
            continue;
        }
        let Some(told) = values(value, "include_usage") else { continue };
        if told.is_empty() {
            let inside = value.get(1..).unwrap_or_default().trim_ascii_start();
            let at = span.start + 1;
            let empty = inside.starts_with(b"}");
            edits
                .push((at..at, if empty { br#""include_usage":true"# } else { br#""include_usage":true,"# }));
        }
        for inner in told {
            if matches!(value.get(inner.clone()), Some(b"false" | b"null")) {
                edits.push((span.start + inner.start..span.start + inner.end, b"true"));
            }
        }
    }
    splice(body, &edits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn asked(text: &str) -> String {
        String::from_utf8(ask_for_usage(Bytes::from(text.to_owned())).to_vec()).unwrap()
    }

    #[test]
    fn only_what_was_not_asked_for_is_added() {
        for (body, wanted) in [
            ("{}", r#"{"stream_options":{"include_usage":true}}"#),
            ("{ \"a\": 1.0 }\n", "{ \"a\": 1.0 ,\"stream_options\":{\"include_usage\":true}}\n"),
            (r#"{"stream_options":null}"#, r#"{"stream_options":{"include_usage":true}}"#),
            (r#"{"stream_options": { }}"#, r#"{"stream_options": {"include_usage":true }}"#),
            (
                r#"{"stream_options":{"x":1},"a":{"stream_options":null}}"#,
                r#"{"stream_options":{"include_usage":true,"x":1},"a":{"stream_options":null}}"#,
            ),
            (
                r#"{"stream_options":{"x":1, "include_usage" : false}}"#,
                r#"{"stream_options":{"x":1, "include_usage" : true}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":null},"stream_options":{}}"#,
                r#"{"stream_options":{"include_usage":true},"stream_options":{"include_usage":true}}"#,
            ),
        ] {
            assert_eq!(asked(body), wanted);
        }
    }

    #[test]
    fn what_was_asked_for_or_makes_no_sense_stays_without_a_copy() {
        for text in [
            r#"{"stream_options":{"include_usage":true}}"#,
            r#"{"stream_options":{"include_usage":1}}"#,
            r#"{"stream_options":"yes"}"#,
            r#"{"a":1} {"b":2}"#,
            r#"{"a":1"#,
            "[]",
            "",
        ] {
            let body = Bytes::from_static(text.as_bytes());
            assert_eq!(ask_for_usage(body.clone()), body);
            assert_eq!(ask_for_usage(body.clone()).as_ptr(), body.as_ptr());
        }
    }

    proptest! {
        #[test]
        fn the_parsed_body_differs_in_what_is_asked_alone(
            fields in prop::collection::btree_map("[a-z\"\\\\{}]{0,6}", any::<i32>(), 0..4),
            options in prop::option::of(prop::collection::btree_map("include_usage|[a-z}]{0,4}", any::<bool>(), 0..3)),
            pretty in any::<bool>(),
        ) {
            let mut object: serde_json::Map<_, _> = fields.into_iter().map(|(k, v)| (k, v.into())).collect();
            if let Some(options) = options {
                object.insert("stream_options".into(), json!(options));
            }
            let before = Value::Object(object.clone());
            let text = if pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let after: Value = serde_json::from_str(&asked(&text.unwrap())).unwrap();
            let options = object.entry("stream_options").or_insert_with(|| json!({}));
            options["include_usage"] = json!(true);
            prop_assert_eq!(after, Value::Object(object));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ask_for_usage(bytes.into());
        }
    }
}
