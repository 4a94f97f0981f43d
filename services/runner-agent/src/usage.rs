//! Token counts as an engine tells them at the start or end of its answer, found without keeping the answer.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;

/// So much of either end of the answer is looked at.
const KEEP: usize = 8 * 1024;

/// The ends of an answer. It holds on to the engine's own buffers instead of copying them.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    first: Option<Bytes>,
    last: VecDeque<Bytes>,
    held: usize,
    events: Events,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
}

/// A `usage` object in any dialect: chats and completions say prompt and completion, responses and messages say input
/// and output; messages tell what the cache had apart from the input.
#[derive(Debug, Default, Deserialize)]
struct Told {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

impl From<Told> for Tokens {
    fn from(told: Told) -> Self {
        let cached = [told.cache_read_input_tokens, told.cache_creation_input_tokens];
        let cached = cached.into_iter().flatten().fold(0, u64::saturating_add);
        let input = told.input_tokens.map(|input| input.saturating_add(cached));
        Self {
            prompt_tokens: told.prompt_tokens.or(input),
            completion_tokens: told.completion_tokens.or(told.output_tokens),
        }
    }
}

/// Counts the events of a stream that have data.
#[derive(Debug, Default)]
struct Events {
    count: u64,
    /// So much of [`DATA`] is at the beginning of the line that is being read; more: the line is none of those, or counted.
    matched: usize,
}

const DATA: &[u8] = b"data:";

impl Events {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                self.matched = 0;
            } else if self.matched < DATA.len() {
                self.matched =
                    if DATA.get(self.matched) == Some(byte) { self.matched + 1 } else { usize::MAX };
                self.count += u64::from(self.matched == DATA.len());
            }
        }
    }
}

impl Ends {
    pub(crate) fn push(&mut self, data: &Bytes) {
        self.events.push(data);
        if self.first.is_none() {
            self.first = Some(data.slice(..data.len().min(KEEP)));
        }
        let tail = data.slice(data.len().saturating_sub(KEEP)..);
        self.held += tail.len();
        self.last.push_back(tail);
        while let Some(oldest) = self.last.front() {
            if self.held - oldest.len() < KEEP {
                break;
            }
            self.held -= oldest.len();
            self.last.pop_front();
        }
    }

    /// Events with data so far: of a stream, about its tokens.
    pub(crate) fn events(&self) -> u64 {
        self.events.count
    }

    fn tail(&self) -> Vec<u8> {
        let mut tail = Vec::with_capacity(self.held);
        for piece in &self.last {
            tail.extend_from_slice(piece);
        }
        tail
    }

    /// The last `usage` object told; a stream of messages tells its input at its beginning.
    pub(crate) fn tokens(&self) -> Tokens {
        let last = usage_in(&self.tail()).unwrap_or_default();
        if last.prompt_tokens.is_some() && last.completion_tokens.is_some() {
            return last;
        }
        // Some tell one at the beginning and the other at the end.
        let first = self.first.as_deref().and_then(usage_in).unwrap_or_default();
        Tokens {
            prompt_tokens: last.prompt_tokens.or(first.prompt_tokens),
            completion_tokens: last.completion_tokens.or(first.completion_tokens),
        }
    }

    /// What can be said of a stream that broke off before it told its usage: engines send an event for each token, after
    /// one that tells the role alone.
    pub(crate) fn tokens_so_far(&self) -> Tokens {
        let tokens = self.tokens();
        let counted = self.events.count.saturating_sub(1);
        let counted = (self.events.count > 0).then_some(counted);
        let completion_tokens = tokens.completion_tokens.max(counted);
        Tokens { completion_tokens, ..tokens }
    }
}

fn usage_in(bytes: &[u8]) -> Option<Tokens> {
    let mut end = bytes.len();
    loop {
        let at = find_last(bytes.get(..end)?, b"\"usage\"")?;
        // Within a JSON string the quote would be escaped.
        let escaped = at.checked_sub(1).and_then(|before| bytes.get(before)) == Some(&b'\\');
        let value = bytes.get(at + b"\"usage\"".len()..)?.trim_ascii_start().strip_prefix(b":");
        if let (false, Some(value)) = (escaped, value) {
            let mut values = serde_json::Deserializer::from_slice(value).into_iter::<Option<Told>>();
            if let Some(Ok(Some(tokens))) = values.next() {
                return Some(tokens.into());
            }
        }
        end = at;
    }
}

fn find_last(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).rposition(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(pieces: &[&str]) -> Tokens {
        let mut ends = Ends::default();
        for piece in pieces {
            ends.push(&Bytes::from((*piece).to_owned()));
        }
        ends.tokens()
    }

    #[test]
    fn the_last_chunk_before_done_tells_the_usage() {
        let found = tokens(&[
            "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\":{}\"}}],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"compl",
            "etion_tokens\":7,\"total_tokens\":12}}\n\ndata: [DONE]\n\n",
        ]);
        assert_eq!(found, Tokens { prompt_tokens: Some(5), completion_tokens: Some(7) });
    }

    #[test]
    fn usage_before_a_long_answer_is_found_too() {
        let long = format!("{{\"usage\": {{\"prompt_tokens\":3}},\"data\":[{}0]}}", "0,".repeat(20_000));
        assert_eq!(tokens(&[&long]).prompt_tokens, Some(3));
    }

    #[test]
    fn usage_in_other_words_and_in_two_places_is_found() {
        let found = tokens(&[
            "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n",
            &"data: {\"type\":\"ping\"}\n\n".repeat(500),
            "event: message_delta\ndata: {\"usage\":{\"output_tokens\":7}}\n\n",
        ]);
        assert_eq!(found, Tokens { prompt_tokens: Some(5), completion_tokens: Some(7) });
    }

    #[test]
    fn a_stream_that_broke_off_has_a_token_for_each_event_after_the_first() {
        let text = "data: {\"role\":1}\n\n: data: no\n\ndata: {\"data:\":2}\r\n\r\nid: data:\ndata: 3\n\n";
        for cut in 0..text.len() {
            let mut ends = Ends::default();
            let (first, second) = text.as_bytes().split_at(cut);
            for piece in [first, second] {
                ends.push(&Bytes::copy_from_slice(piece));
            }
            assert_eq!(ends.tokens_so_far(), Tokens { prompt_tokens: None, completion_tokens: Some(2) });
        }
        assert_eq!(Ends::default().tokens_so_far(), Tokens::default());
    }

    #[test]
    fn an_answer_without_usage_has_none() {
        assert_eq!(tokens(&["{\"a\":1}", "\"usage\"", ""]), Tokens::default());
    }

    #[test]
    fn what_is_held_stays_bounded() {
        let mut ends = Ends::default();
        for _ in 0..10_000 {
            ends.push(&Bytes::from_static(&[b'x'; 100]));
        }
        assert!(ends.held < 2 * KEEP);
    }

    #[test]
    fn other_dialects_count_too() {
        let found = tokens(&[
            "event: message_start
data: {\"message\":{\"usage\":{\"input_tokens\":1,\"cache_read_input_tokens\":53,",
            "\"output_tokens\":0}}}

",
            "event: message_delta
data: {\"usage\":{\"output_tokens\":4}}

",
        ]);
        assert_eq!(found.completion_tokens, Some(4));
        let found =
            tokens(&["{\"usage\":{\"cache_read_input_tokens\":50,\"input_tokens\":4,\"output_tokens\":2}}"]);
        assert_eq!(found, Tokens { prompt_tokens: Some(54), completion_tokens: Some(2) });
        let found = tokens(&[
            "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":7,",
            "\"total_tokens\":12,\"input_tokens_details\":{\"cached_tokens\":3}}}}

",
        ]);
        assert_eq!(found, Tokens { prompt_tokens: Some(5), completion_tokens: Some(7) });
    }
}
