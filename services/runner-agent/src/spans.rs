//! Where a JSON object's values lie in its bytes, and edits there that leave every other byte as it is.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The bytes with each edit's text in place of its range. Edits are in order; without any nothing is copied.
pub(crate) fn splice(body: Bytes, edits: &[(Range<usize>, &[u8])]) -> Bytes {
    if edits.is_empty() {
        return body;
    }
    let more = edits.iter().map(|(_, text)| text.len()).sum::<usize>();
    let mut out = Vec::with_capacity(body.len() + more);
    let mut from = 0;
    for (span, text) in edits {
        out.extend_from_slice(body.get(from..span.start).unwrap_or_default());
        out.extend_from_slice(text);
        from = span.end;
    }
    out.extend_from_slice(body.get(from..).unwrap_or_default());
    out.into()
}

/// Where the values of an object's keys of this name lie; `None`: it is no object. Parsers differ in which of two they
/// take, so all are found.
pub(crate) fn values(object: &[u8], name: &str) -> Option<Vec<Range<usize>>> {
    struct Spans<'a>(&'a [u8], &'a str);

    impl<'de> Visitor<'de> for Spans<'de> {
        type Value = Vec<Range<usize>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut spans = Vec::new();
            while let Some(key) = map.next_key::<Key<'de>>()? {
                if key.0 == self.1 {
                    // Borrowed, so its address tells where in the object it lies.
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

    let mut reader = serde_json::Deserializer::from_slice(object);
    let spans = reader.deserialize_map(Spans(object, name)).ok()?;
    reader.end().ok()?;
    Some(spans)
}

/// The object with each of its keys of this name set to `value`, which is JSON; with the key at its end, if it has none.
/// What is no object stays.
pub(crate) fn set(object: Bytes, name: &str, value: &str) -> Bytes {
    let Some(spans) = values(&object, name) else { return object };
    if !spans.is_empty() {
        let edits: Vec<_> = spans.into_iter().map(|span| (span, value.as_bytes())).collect();
        return splice(object, &edits);
    }
    let Some(end) = object.iter().rposition(|byte| *byte == b'}') else { return object };
    let empty = object.get(..end).is_some_and(|before| before.trim_ascii_end().ends_with(b"{"));
    let field = format!("{}\"{name}\":{value}", if empty { "" } else { "," });
    splice(object, &[(end..end, field.as_bytes())])
}

/// A key, borrowed unless it is written with escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
