//! Gives a request the model name that the engine answers to, and leaves every other byte as the client sent it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The body with the top-level `model` set to `served`. A body that is no JSON object, or names no model, stays:
/// the engine says what is wrong with it.
pub(crate) fn rewrite_model(body: Bytes, served: &str) -> Bytes {
    let Ok(wanted) = serde_json::to_string(served) else { return body };
    let spans = model_spans(&body);
    if spans.iter().all(|span| body.get(span.clone()) == Some(wanted.as_bytes())) {
        return body;
    }
    let mut out = Vec::with_capacity(body.len() + wanted.len() * spans.len());
    let mut from = 0;
    for span in spans {
        out.extend_from_slice(body.get(from..span.start).unwrap_or_default());
        out.extend_from_slice(wanted.as_bytes());
        from = span.end;
    }
    out.extend_from_slice(body.get(from..).unwrap_or_default());
    out.into()
}

/// Where the values of top-level `model` keys lie; parsers differ in which of two they take, so all are found.
fn model_spans(body: &[u8]) -> Vec<Range<usize>> {
    struct Spans<'a>(&'a [u8]);

    impl<'de> Visitor<'de> for Spans<'de> {
        type Value = Vec<Range<usize>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut spans = Vec::new();
            while let Some(key) = map.next_key::<Key<'de>>()? {
                if key.0 == "model" {
                    // Borrowed, so its address tells where in the body it lies.
                    let raw: &'de RawValue = map.next_value()?;
                    let start = raw.get().as_ptr().addr() - self.0.as_ptr().addr();
                    spans.push(start..start + raw.get().len());
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(spans)
        }
    }

    let mut reader = serde_json::Deserializer::from_slice(body);
    reader.deserialize_map(Spans(body)).unwrap_or_default()
}

/// A key, borrowed unless it is written with escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn rewritten(text: &str, served: &str) -> String {
        let out = rewrite_model(Bytes::from(text.to_owned()), served);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn only_the_value_changes_and_the_spacing_stays() {
        assert_eq!(
            rewritten(
                "{ \"x\":1.0e3,\n  \"model\" :  \"alias\" , \"messages\":[{\"model\":\"no\"}] }",
                "real\"m"
            ),
            "{ \"x\":1.0e3,\n  \"model\" :  \"real\\\"m\" , \"messages\":[{\"model\":\"no\"}] }"
        );
    }

    #[test]
    fn what_is_no_object_with_a_model_stays() {
        for text in ["", "[1]", "{\"x\":1}", "{\"model\":", "nonsense", "\"model\""] {
            assert_eq!(rewritten(text, "m"), text);
        }
    }

    #[test]
    fn a_second_or_escaped_key_is_no_way_around() {
        assert_eq!(rewritten(r#"{"model":"a","mod\u0065l":"b"}"#, "m"), r#"{"model":"m","mod\u0065l":"m"}"#);
    }

    #[test]
    fn a_right_name_costs_no_copy() {
        let body = Bytes::from_static(br#"{"model":"m"}"#);
        assert_eq!(rewrite_model(body.clone(), "m").as_ptr(), body.as_ptr());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("model|.{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_parsed_body_differs_in_the_model_alone(
            fields in prop::collection::btree_map("[a-z\"\\\\]{0,8}", any_json(), 0..6),
            model in any_json(),
            served in ".*",
            pretty in any::<bool>(),
        ) {
            let mut object: serde_json::Map<_, _> = fields.into_iter().collect();
            object.insert("model".into(), model);
            let before = Value::Object(object.clone());
            let text = if pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let after: Value = serde_json::from_str(&rewritten(&text.unwrap(), &served)).unwrap();
            object.insert("model".into(), json!(served));
            prop_assert_eq!(after, Value::Object(object));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = rewrite_model(bytes.into(), "m");
        }
    }
}
