//! The last lines of an engine's log, bounded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};

const LINES: usize = 50;
const LINE: usize = 500;

/// The last lines that were fed. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Rc<RefCell<VecDeque<String>>>);

impl Tail {
    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let lines = self.0.borrow();
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }

    fn push(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let mut lines = self.0.borrow_mut();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(text.chars().filter(|c| !c.is_control() || *c == '\t').take(LINE).collect());
    }

    /// Reads to the end, so that the engine never blocks on a full pipe.
    pub(crate) async fn drain(self, mut source: impl AsyncRead + Unpin) {
        let mut lines = Lines::new(self);
        let mut buffer = vec![0; 8 * 1024];
        while let Ok(read @ 1..) = source.read(&mut buffer).await {
            lines.feed(buffer.get(..read).unwrap_or_default());
        }
        lines.finish();
    }
}

/// Cuts bytes into lines for a [`Tail`].
#[derive(Debug)]
pub(crate) struct Lines {
    tail: Tail,
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(tail: Tail) -> Self {
        Self { tail, partial: Vec::new() }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        // Progress bars end their lines with a carriage return.
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            // A line without an end must not grow for ever.
            if self.partial.len() < 4 * LINE {
                self.partial.extend_from_slice(piece);
            }
            if matches!(piece.last(), Some(b'\n' | b'\r')) {
                self.tail.push(&self.partial);
                self.partial.clear();
            }
        }
    }

    pub(crate) fn finish(mut self) {
        self.tail.push(&std::mem::take(&mut self.partial));
    }
}

/// A sentence with the log's end below it, for those who wait.
pub(crate) fn with_log(what: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        format!("{what}; it logged nothing")
    } else {
        format!("{what}; its log ends with:\n{}", lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_whole_and_bounded() {
        let tail = Tail::default();
        let mut lines = Lines::new(tail.clone());
        for n in 0..200 {
            lines.feed(format!("line {n}").as_bytes());
            lines.feed(b"\r\n");
        }
        lines.feed(&[b'x'; 100_000]);
        lines.finish();
        let last = tail.last(2);
        assert_eq!(last[0], "line 199");
        assert_eq!(last[1].len(), LINE);
        assert_eq!(tail.last(1000).len(), LINES);
    }
}
