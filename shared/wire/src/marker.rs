//! Whether a stream of server-sent events has told its end: a connection that merely ends may have been cut.

use crate::route::Route;

/// So much of a line is looked at: an event's name stands at its beginning, whatever follows.
const LOOK: usize = 96;

/// Looks through a stream's bytes for what ends streams of its route.
#[derive(Debug, Clone)]
pub struct EndMarker {
    /// Names of events, any of which is the last.
    names: &'static [&'static str],
    /// The beginning of the line that is being read.
    line: Vec<u8>,
    seen: bool,
}

impl EndMarker {
    /// For streams of `route`. `data: [DONE]` counts everywhere: engines add it to streams that have an end of their
    /// own. What an engine sends on [`Route::Upstream`] is not known, so there every end is one.
    #[must_use]
    pub fn of(route: Route) -> Self {
        let names: &'static [&'static str] = match route {
            Route::Messages => &["message_stop", "error"],
            Route::Responses => &["response.completed", "response.failed", "response.incomplete", "error"],
            Route::Speech => &["speech.audio.done"],
            Route::Transcriptions | Route::Translations => &["transcript.text.done"],
            Route::ImageGenerations => &["image_generation.completed"],
            Route::ImageEdits => &["image_edit.completed"],
            _ => &[],
        };
        Self { names, line: Vec::new(), seen: route == Route::Upstream }
    }

    /// Looks at what comes next.
    pub fn see(&mut self, mut bytes: &[u8]) {
        while !self.seen && !bytes.is_empty() {
            let end = memchr::memchr2(b'\n', b'\r', bytes);
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let room = LOOK.saturating_sub(self.line.len()).min(part.len());
            self.line.extend_from_slice(part.get(..room).unwrap_or_default());
            if end.is_some() {
                self.seen = self.is_last();
                self.line.clear();
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn seen(&self) -> bool {
        // The last line may lack its end.
        self.seen || self.is_last()
    }

    fn is_last(&self) -> bool {
        if let Some(name) = self.line.strip_prefix(b"event:") {
            return self.names.iter().any(|last| name.trim_ascii() == last.as_bytes());
        }
        let Some(data) = self.line.strip_prefix(b"data:") else { return false };
        let mut data = data.trim_ascii();
        if data == b"[DONE]" {
            return true;
        }
        // For engines that leave the `event:` line out.
        for token in [&b"{"[..], b"\"type\"", b":", b"\""] {
            match data.strip_prefix(token) {
                Some(rest) => data = rest.trim_ascii_start(),
                None => return false,
            }
        }
        self.names
            .iter()
            .any(|last| data.strip_prefix(last.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'"')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(route: Route, text: &str) -> bool {
        let mut whole = EndMarker::of(route);
        whole.see(text.as_bytes());
        let mut parts = EndMarker::of(route);
        for byte in text.as_bytes() {
            parts.see(&[*byte]);
        }
        assert_eq!(whole.seen(), parts.seen(), "{text:?}");
        whole.seen()
    }

    #[test]
    fn each_dialect_has_its_own_end() {
        let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
        assert!(seen(Route::Messages, stop));
        assert!(!seen(Route::ChatCompletions, stop));
        assert!(seen(Route::ChatCompletions, "data: {}\r\n\r\ndata: [DONE]"));
        assert!(seen(Route::Responses, "data: { \"type\": \"response.failed\", \"x\": 1}\n\n"));
        assert!(seen(Route::Upstream, "anything"));
    }

    #[test]
    fn a_name_within_an_event_is_not_its_end() {
        for text in [
            "data: {\"type\":\"content_block_delta\",\"text\":\"event: message_stop\"}\n\n",
            "event: message_stopped\n",
            ": data: [DONE]\n",
            "data: {\"type\":\"message_stop_\"}\n",
        ] {
            assert!(!seen(Route::Messages, text), "{text}");
        }
    }

    #[test]
    fn a_last_event_of_any_size_is_known_by_its_beginning() {
        let long = format!("data: {{\"type\":\"response.completed\",\"x\":\"{}\"}}\n\n", "x".repeat(100_000));
        assert!(seen(Route::Responses, &long));
        let mut marker = EndMarker::of(Route::Responses);
        marker.see(&vec![b'x'; 1 << 20]);
        assert_eq!(marker.line.len(), LOOK);
    }
}
