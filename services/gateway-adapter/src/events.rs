//! Server-sent events on their way through: cut between events, never within, so that heartbeats and errors
//! may be put in.

use berth_wire::{Dialect, Route};
use bytes::Bytes;
use serde_json::json;

use crate::anthropic::RequestId;
use crate::client::{Client, Held};
use crate::flow::Progress;
use crate::{engine_errors, strip};

/// What is changed of a stream on its way through.
#[derive(Debug)]
pub(crate) enum Edit {
    Nothing,
    /// Chunks that tell only usage are left out.
    Usage,
    /// An engine's errors are said in Anthropic's words.
    Errors(Option<RequestId>),
}

impl Edit {
    /// For a job's stream; `strip`: its client did not ask for usage.
    pub(crate) fn of(client: &Client, strip: bool) -> Self {
        match client.route().dialect() {
            Dialect::Anthropic => Self::Errors(client.request().cloned()),
            Dialect::OpenAi if strip => Self::Usage,
            Dialect::OpenAi => Self::Nothing,
        }
    }

    /// Changes whole events.
    pub(crate) fn apply(&self, events: Bytes) -> Bytes {
        match self {
            Self::Nothing => events,
            Self::Usage => strip::without_usage(events),
            Self::Errors(request) => engine_errors::events(events, request.as_ref().map(RequestId::as_str)),
        }
    }
}

/// Passes whole events and holds back the beginning of one that is not whole yet. Copies nothing.
#[derive(Debug)]
pub(crate) struct Splitter {
    pub(crate) ready: Held,
    held: Held,
    /// An event that begins to be this large is passed in parts.
    most: u64,
    /// The last two bytes seen.
    before: [u8; 2],
    /// Part of an event has been passed without its end.
    cut: bool,
    edit: Edit,
    /// Bytes that were left out and not yet counted as taken.
    pub(crate) stripped: usize,
}

impl Splitter {
    pub(crate) fn new(most: u64, edit: Edit) -> Self {
        Self {
            ready: Held::default(),
            held: Held::default(),
            most,
            before: [0; 2],
            cut: false,
            edit,
            stripped: 0,
        }
    }

    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        let end = last_boundary(self.before, &bytes);
        self.remember(&bytes);
        if let Some(end) = end {
            let events = bytes.split_to(end);
            // What began with an event that was passed in part is no chunk of usage, and no error.
            if !matches!(self.edit, Edit::Nothing) && !self.cut {
                self.pass(events);
            } else {
                self.release();
                self.ready.push(events);
            }
            self.cut = false;
        }
        self.held.push(bytes);
        if self.held.len > self.most {
            self.release();
            self.cut = true;
        }
    }

    /// Passes what is held back and `events`, which complete it, edited.
    fn pass(&mut self, events: Bytes) {
        let whole = if self.held.len == 0 {
            events
        } else {
            self.held.push(events);
            self.held.join()
        };
        let before = whole.len();
        let kept = self.edit.apply(whole);
        self.stripped += before.saturating_sub(kept.len());
        self.ready.push(kept);
    }

    /// Passes what is held back: nothing follows that could complete it.
    pub(crate) fn flush(&mut self) {
        if self.held.len > 0 {
            self.release();
            self.cut = true;
        }
    }

    /// Drops what is held back: an event that will never be whole.
    pub(crate) fn forget(&mut self) {
        self.held = Held::default();
    }

    /// Whether something of our own may be put in here.
    pub(crate) fn at_boundary(&self) -> bool {
        !self.cut
    }

    fn release(&mut self) {
        while let Some(bytes) = self.held.pop() {
            self.ready.push(bytes);
        }
    }

    fn remember(&mut self, bytes: &Bytes) {
        match bytes.as_ref() {
            [.., a, b] => self.before = [*a, *b],
            [b] => self.before = [self.before[1], *b],
            [] => {}
        }
    }
}

/// Where the last event ends in `bytes`, which follow `before`.
fn last_boundary(before: [u8; 2], bytes: &[u8]) -> Option<usize> {
    let at = |position: usize| -> u8 {
        // Two bytes of the past, then the present.
        match position.checked_sub(2) {
            Some(i) => bytes.get(i).copied().unwrap_or_default(),
            None => before.get(position).copied().unwrap_or_default(),
        }
    };
    (1..=bytes.len()).rev().find(|end| {
        let last = end + 1;
        let three = (at(last - 2), at(last - 1), at(last));
        matches!(three, (_, b'\n', b'\n') | (_, b'\r', b'\r') | (b'\n', b'\r', b'\n'))
    })
}

/// What keeps a waiting client's connection alive: SDKs skip comments, proxies count them.
pub(crate) fn comment(progress: &Progress, detail: Option<&str>) -> Bytes {
    let place = if progress.serving.is_some() { "running" } else { "queued" };
    let mut line = format!(": berth {place} position={}", progress.position);
    if let Some(eta) = progress.eta_s() {
        line.push_str(&format!(" eta_s={eta}"));
    }
    line.push_str(&format!(" stage={}", progress.stage.as_str()));
    if let Some(detail) = detail {
        // Nothing of it may end the line.
        let shown: String = detail.chars().filter(|c| !c.is_control() && *c != '"').take(DETAIL).collect();
        line.push_str(&format!(" detail=\"{shown}\""));
    }
    line.push_str("\n\n");
    line.into()
}

/// Characters of an engine's own progress that are told.
const DETAIL: usize = 120;

/// What Anthropic's clients skip and watchdogs count. It has data: an event without breaks their SDKs.
const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// A sign of life beside the comment, where the route has one. Clients of OpenAI's routes must have asked for `chunks`
/// without choices, and get none once data flows.
pub(crate) fn sign(
    route: Route,
    job: &str,
    model: &str,
    created: u64,
    progress: &Progress,
    chunks: bool,
) -> Option<Bytes> {
    match route.dialect() {
        Dialect::Anthropic => Some(Bytes::from_static(PING)),
        Dialect::OpenAi => chunks.then(|| chunk(route, job, model, created, progress)),
    }
}

/// The same for clients whose watchdog counts only data, and which have asked for chunks without choices.
fn chunk(route: Route, job: &str, model: &str, created: u64, progress: &Progress) -> Bytes {
    let (id, object) = match route {
        Route::ChatCompletions => (format!("chatcmpl-{job}"), "chat.completion.chunk"),
        _ => (format!("cmpl-{job}"), "text_completion"),
    };
    let chunk = json!({
        "id": id,
        "object": object,
        "created": created,
        "model": model,
        "choices": [],
        "usage": null,
        "berth": {
            "stage": progress.stage.as_str(),
            "position": progress.position,
            "eta_s": progress.eta_s(),
        },
    });
    format!("data: {chunk}\n\n").into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn drain(held: &mut Held) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(bytes) = held.pop() {
            out.extend_from_slice(&bytes);
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_passed_is_whole_events_and_nothing_is_lost(
            events in prop::collection::vec(("[a-z]{0,9}", prop::sample::select(vec!["\n\n", "\r\n\r\n", "\r\r"])), 0..9),
            rest in "[a-z]{0,5}",
            cuts in prop::collection::vec(0_usize..120, 0..9),
        ) {
            let mut text = String::new();
            let mut ends = vec![0];
            for (event, end) in &events {
                text.push_str("data: ");
                text.push_str(event);
                text.push_str(end);
                ends.push(text.len());
            }
            text.push_str(&rest);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(0);
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut splitter = Splitter::new(1 << 20, Edit::Nothing);
            let mut passed = Vec::new();
            for pair in cuts.windows(2) {
                splitter.push(Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]]));
                passed.extend(drain(&mut splitter.ready));
                prop_assert!(ends.contains(&passed.len()), "cut at {} of {:?}", passed.len(), text);
            }
            prop_assert_eq!(passed.len(), *ends.last().unwrap());
            splitter.flush();
            passed.extend(drain(&mut splitter.ready));
            prop_assert_eq!(passed, text.into_bytes());
        }
    }

    #[test]
    fn an_event_that_is_too_large_to_hold_is_passed_in_parts() {
        let mut splitter = Splitter::new(4, Edit::Nothing);
        splitter.push(Bytes::from_static(b"data: x"));
        assert_eq!(drain(&mut splitter.ready), b"data: x");
        assert!(!splitter.at_boundary());
        splitter.push(Bytes::from_static(b"\n\n"));
        assert!(splitter.at_boundary());
    }

    #[test]
    fn a_chunk_of_usage_is_left_out_wherever_frames_cut_it() {
        let text = "data: {\"choices\":[{\"a\":1}]}\n\ndata: {\"choices\":[],\"usage\":{\"n\":1}}\n\ndata: [DONE]\n\n";
        let wanted = "data: {\"choices\":[{\"a\":1}]}\n\ndata: [DONE]\n\n";
        for first in 0..text.len() {
            for second in first..text.len() {
                let mut splitter = Splitter::new(1 << 20, Edit::Usage);
                let mut passed = Vec::new();
                let (head, rest) = text.as_bytes().split_at(first);
                let (middle, tail) = rest.split_at(second - first);
                for piece in [head, middle, tail] {
                    splitter.push(Bytes::copy_from_slice(piece));
                    passed.extend(drain(&mut splitter.ready));
                }
                assert_eq!(String::from_utf8(passed).unwrap(), wanted);
                assert_eq!(splitter.stripped, text.len() - wanted.len());
            }
        }
    }

    #[test]
    fn a_heartbeat_counts_down_and_says_nothing_of_a_wait_that_was_to_be_over() {
        let told = |expected: Instant| {
            let progress = Progress { expected: Some(expected), ..Progress::default() };
            let said = comment(&progress, None);
            String::from_utf8(said.to_vec()).unwrap()
        };
        let now = Instant::now();
        assert!(told(now + Duration::from_millis(30_400)).contains(" eta_s=31 "));
        assert!(told(now).contains(" eta_s=0 "), "it may be over at any moment");
        let past = now.checked_sub(2 * Duration::from_secs(1)).unwrap();
        assert_eq!(told(past), ": berth queued position=0 stage=queued\n\n");
    }

    #[test]
    fn a_heartbeat_says_where_the_job_is() {
        let progress = Progress {
            position: 3,
            expected: Some(Instant::now() + Duration::from_secs(41)),
            stage: berth_wire::Stage::Loading,
            ..Progress::default()
        };
        assert_eq!(comment(&progress, None), ": berth queued position=3 eta_s=41 stage=loading\n\n");
        let told = comment(&progress, Some("layer 3\n\ndata: of \"7\""));
        assert!(told.ends_with(b" stage=loading detail=\"layer 3data: of 7\"\n\n"), "{told:?}");
        let sign = |route, chunks| sign(route, "j", "m", 1, &progress, chunks);
        assert_eq!(sign(Route::Messages, false).unwrap(), "event: ping\ndata: {\"type\":\"ping\"}\n\n");
        assert_eq!(sign(Route::Responses, false), None);
        assert_eq!(sign(Route::ChatCompletions, false), None);
        assert!(sign(Route::ChatCompletions, true).is_some());
        let chunk = chunk(Route::ChatCompletions, "j", "m", 1, &progress);
        let text = std::str::from_utf8(&chunk).unwrap();
        let value: serde_json::Value =
            serde_json::from_str(text.trim().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(value["choices"], json!([]));
        assert_eq!(value["berth"]["eta_s"], 41);
    }
}
