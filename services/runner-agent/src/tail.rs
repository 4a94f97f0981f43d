//! The last lines of an engine's log, bounded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::mask::{Mask, printable};

const LINES: usize = 50;
const LINE: usize = 500;
/// Bytes that are read of a line: those of [`LINE`] characters, whatever they are.
const READ: usize = 4 * LINE;

/// The last lines that were fed, without their secrets. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    lines: Rc<RefCell<VecDeque<String>>>,
    mask: Mask,
}

impl Tail {
    pub(crate) fn new(mask: Mask) -> Self {
        Self { mask, ..Self::default() }
    }

    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let lines = self.lines.borrow();
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }

    fn push(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = printable(text.trim_end());
        if text.is_empty() {
            return;
        }
        // Before it is shortened, so that no half of a secret is left.
        let text = if line.len() < READ { self.mask.hide(&text) } else { self.mask.hide_cut(&text) };
        let mut lines = self.lines.borrow_mut();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(text.chars().take(LINE).collect());
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
            if self.partial.len() < READ {
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

    #[test]
    fn a_secret_is_in_no_line_however_it_is_fed() {
        let secret = "s3cr3t".repeat(400);
        let tail = Tail::new(Mask::of([secret.as_str()]));
        let mut lines = Lines::new(tail.clone());
        let (first, second) = secret.split_at(2100);
        // As a pipe may deliver it: what is too long is not read to its end.
        for piece in [&format!("{} {secret}\n", "x".repeat(490)), "it is ", first, second, " ?\n"] {
            lines.feed(piece.as_bytes());
        }
        lines.finish();
        assert_eq!(tail.last(9), [format!("{} ***", "x".repeat(490)), "it is ***".to_owned()]);
    }
}
