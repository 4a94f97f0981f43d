//! Usage that nobody asked for: engines are always asked for it, so that tokens can be counted, and clients that did not
//! ask for the chunk that tells it must not see it.

use berth_wire::Route;
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Whether streams of this route tell their usage in a chunk of its own, which clients must ask for.
pub(crate) fn tells_usage_apart(route: Route) -> bool {
    matches!(route, Route::ChatCompletions | Route::Completions)
}

/// Whether a stream of this route must lose those chunks for a client that did or did not ask for them.
pub(crate) fn needed(route: Route, stream: bool, asked: bool) -> bool {
    stream && !asked && tells_usage_apart(route)
}

/// `events`, whole ones, without chunks that tell nothing but usage. What has none is not copied.
pub(crate) fn without_usage(events: Bytes) -> Bytes {
    if !contains(&events, b"\"usage\"") || !contains(&events, b"\"choices\"") {
        return events;
    }
    let mut kept: Option<BytesMut> = None;
    let mut at = 0;
    for event in each(&events) {
        if is_usage_chunk(event) {
            kept.get_or_insert_with(|| BytesMut::from(events.get(..at).unwrap_or_default()));
        } else if let Some(kept) = &mut kept {
            kept.extend_from_slice(event);
        }
        at += event.len();
    }
    kept.map_or(events, BytesMut::freeze)
}

/// The events of `bytes`, one after the other; the last one may lack its end.
pub(crate) fn each(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (event, after) = rest.split_at_checked(event_len(rest))?;
        rest = after;
        (!event.is_empty()).then_some(event)
    })
}

pub(crate) fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Up to and with the blank line that ends the first event.
fn event_len(bytes: &[u8]) -> usize {
    let ends = |end: &usize| {
        let seen = bytes.get(..*end).unwrap_or_default();
        seen.ends_with(b"\n\n") || seen.ends_with(b"\r\r") || seen.ends_with(b"\n\r\n")
    };
    (1..=bytes.len()).find(ends).unwrap_or(bytes.len())
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Vec<&'a RawValue>,
    #[serde(borrow)]
    usage: &'a RawValue,
}

fn is_usage_chunk(event: &[u8]) -> bool {
    let Some(data) = event.trim_ascii().strip_prefix(b"data:") else { return false };
    serde_json::from_slice::<Chunk<'_>>(data)
        .is_ok_and(|chunk| chunk.choices.is_empty() && chunk.usage.get().starts_with('{'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(text: &str) -> String {
        String::from_utf8(without_usage(Bytes::from(text.to_owned())).to_vec()).unwrap()
    }

    #[test]
    fn the_usage_chunk_goes_and_every_other_byte_stays() {
        let before =
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\" {}\"}}],\"usage\":null}\n\n";
        let after = ": comment\r\n\r\ndata: [DONE]\n\n";
        for usage in [
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}}\n\n",
            "data: {\"id\": \"x\", \"choices\": [ ],\n\"usage\": {\"prompt_tokens\": 5}}\r\n\r\n",
        ] {
            let usage = usage.replace(",\n", ", ");
            assert_eq!(stripped(&format!("{before}{usage}{after}")), format!("{before}{after}"));
        }
    }

    #[test]
    fn what_tells_anything_else_stays() {
        for text in [
            "data: {\"choices\":[{\"index\":0}],\"usage\":{\"prompt_tokens\":5}}\n\n",
            "data: {\"choices\":[],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
            "data: {\"error\":{\"message\":\"no \\\"choices\\\":[] and \\\"usage\\\":{}\"}}\n\n",
            "\"choices\" \"usage\" \n\n",
        ] {
            assert_eq!(stripped(text), text);
        }
    }

    #[test]
    fn what_has_no_usage_is_not_copied() {
        let events = Bytes::from_static(b"data: {\"choices\":[{}],\"usage\":{}}\n\n");
        assert_eq!(without_usage(events.clone()).as_ptr(), events.as_ptr());
    }
}
