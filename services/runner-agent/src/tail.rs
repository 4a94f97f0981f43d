//! The last lines of an engine's log, bounded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;

use crate::mask::{Mask, printable};

/// Of an engine whose log nobody else keeps.
const LINES: usize = 1000;
const LINE: usize = 500;
/// Bytes that are read of a line: those of [`LINE`] characters, whatever they are.
const READ: usize = 4 * LINE;

/// The last lines that were fed, without their secrets. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    kept: Rc<RefCell<Kept>>,
    news: Rc<Notify>,
    room: usize,
    mask: Mask,
}

/// Lines are numbered from 0.
#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    /// Number of the first of them.
    first: u64,
}

impl Tail {
    pub(crate) fn new(mask: Mask) -> Self {
        Self::with_room(mask, LINES)
    }

    /// One that keeps so many lines.
    pub(crate) fn with_room(mask: Mask, room: usize) -> Self {
        Self { kept: Rc::default(), news: Rc::default(), room, mask }
    }

    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let lines = &self.kept.borrow().lines;
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }

    /// The number that the next line will have.
    pub(crate) fn end(&self) -> u64 {
        let kept = self.kept.borrow();
        kept.first + kept.lines.len() as u64
    }

    /// Lines from number `next` on, of so many bytes or one, and how many before them are gone.
    pub(crate) fn from(&self, next: u64, bytes: usize) -> (Vec<String>, u64) {
        let kept = self.kept.borrow();
        let skipped = kept.first.saturating_sub(next);
        let known = usize::try_from(next.saturating_sub(kept.first)).unwrap_or(usize::MAX);
        let mut room = bytes;
        let fits = |line: &&String| {
            let fits = room > 0;
            room = room.saturating_sub(line.len() + 1);
            fits
        };
        (kept.lines.iter().skip(known).take_while(fits).cloned().collect(), skipped)
    }

    /// All lines, which are then forgotten.
    pub(crate) fn take_all(&self) -> Vec<String> {
        let mut kept = self.kept.borrow_mut();
        kept.first += kept.lines.len() as u64;
        kept.lines.drain(..).collect()
    }

    /// Told of each new line.
    pub(crate) fn news(&self) -> Rc<Notify> {
        Rc::clone(&self.news)
    }

    fn push(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = printable(text.trim_end());
        if text.is_empty() {
            return;
        }
        // Before it is shortened, so that no half of a secret is left.
        let text = if line.len() < READ { self.mask.hide(&text) } else { self.mask.hide_cut(&text) };
        let mut kept = self.kept.borrow_mut();
        if kept.lines.len() == self.room {
            kept.lines.pop_front();
            kept.first += 1;
        }
        kept.lines.push_back(text.chars().take(LINE).collect());
        self.news.notify_waiters();
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

    /// A line without an end is one, too.
    pub(crate) fn flush(&mut self) {
        self.tail.push(&std::mem::take(&mut self.partial));
    }

    pub(crate) fn finish(mut self) {
        self.flush();
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
        let tail = Tail::with_room(Mask::default(), 50);
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
        assert_eq!(tail.last(1000).len(), 50);
    }

    #[test]
    fn a_reader_that_lags_behind_is_told_how_much_is_lost() {
        let tail = Tail::with_room(Mask::default(), 3);
        let mut lines = Lines::new(tail.clone());
        lines.feed(b"0\n1\n2\n3\n4\n");
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(tail.from(0, 100), (texts(&["2", "3", "4"]), 2));
        assert_eq!(tail.from(3, 1), (texts(&["3"]), 0));
        assert_eq!((tail.from(5, 100), tail.end()), ((Vec::new(), 0), 5));
        assert_eq!(tail.take_all().len(), 3);
        lines.feed(b"5\n");
        assert_eq!((tail.from(3, 100), tail.end()), ((texts(&["5"]), 2), 6));
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
