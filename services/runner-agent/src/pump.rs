//! Frames to one gateway: numbered, within credit, and as few as the engine's own pace allows.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use berth_bus::{BusError, NatsOutput, OutputSink};
use berth_wire::{Attempt, End, Frame, GatewayId, Head, JobId};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt};

/// Room in a message for everything of a frame that is no data.
const OVERHEAD: usize = 8 * 1024;
/// Largest piece of a stream: small enough that a slow reader gets on.
const STREAMED: usize = 32 * 1024;
/// Largest piece of an answer that is read whole anyway.
const WHOLE: usize = 512 * 1024;

/// Data for one frame, of a message limit of `max_payload`.
pub(crate) fn frame_limit(max_payload: usize, stream: bool) -> usize {
    let most = if stream { STREAMED } else { WHOLE };
    most.min(max_payload.saturating_sub(OVERHEAD).max(1024))
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>>>>;

/// The body of an engine's answer, in pieces of the size that is wanted.
pub(crate) struct Answer {
    chunks: Chunks,
    /// What was read and did not fit into the last piece.
    pending: Option<Bytes>,
    end: Option<Result<(), reqwest::Error>>,
}

/// A piece of the answer; one without data only tells the end.
pub(crate) struct Piece {
    pub(crate) data: Bytes,
    /// Nothing follows: the answer is complete, or broke off.
    pub(crate) end: Option<Result<(), reqwest::Error>>,
}

impl Answer {
    pub(crate) fn new(chunks: impl Stream<Item = Result<Bytes, reqwest::Error>> + 'static) -> Self {
        Self { chunks: Box::pin(chunks), pending: None, end: None }
    }

    /// Waits until there is something to send, be it only the end.
    pub(crate) async fn peek(&mut self) {
        self.pending = self.read().await;
    }

    /// Whether only the end is left to be sent.
    pub(crate) fn is_over(&self) -> bool {
        self.pending.is_none() && self.end.is_some()
    }

    async fn read(&mut self) -> Option<Bytes> {
        if let Some(pending) = self.pending.take() {
            return Some(pending);
        }
        if self.end.is_some() {
            return None;
        }
        match self.chunks.next().await {
            Some(Ok(chunk)) => Some(chunk),
            Some(Err(error)) => {
                self.end = Some(Err(error));
                None
            }
            None => {
                self.end = Some(Ok(()));
                None
            }
        }
    }

    /// The next piece of at most `room` bytes. A stream's piece is what can be read at once; any other waits until
    /// it is full or the answer ends.
    pub(crate) async fn piece(&mut self, room: usize, stream: bool) -> Piece {
        let mut data = Bytes::new();
        let mut joined = BytesMut::new();
        loop {
            let have = data.len() + joined.len();
            if have >= room {
                // The end may be at hand, and needs no room.
                tokio::task::yield_now().await;
                let _ = self.peek().now_or_never();
                break;
            }
            let next = if !stream || have == 0 {
                self.read().await
            } else {
                // Lets the connection's own task hand over what it has already read.
                tokio::task::yield_now().await;
                match self.read().now_or_never() {
                    Some(next) => next,
                    None => break,
                }
            };
            let Some(mut chunk) = next else { break };
            if chunk.len() > room - have {
                self.pending = Some(chunk.split_off(room - have));
            }
            // One chunk goes on as it is; only several are copied together.
            if have == 0 {
                data = chunk;
            } else {
                if joined.is_empty() {
                    joined.extend_from_slice(&std::mem::take(&mut data));
                }
                joined.extend_from_slice(&chunk);
            }
        }
        let end = if self.pending.is_none() { self.end.take() } else { None };
        Piece { data: if joined.is_empty() { data } else { joined.freeze() }, end }
    }
}

/// The numbered frames of one attempt after frame 0.
pub(crate) struct Frames {
    sink: NatsOutput,
    gateway: GatewayId,
    job: JobId,
    attempt: Attempt,
    seq: u64,
    head: Option<Head>,
    begun: Rc<Cell<bool>>,
    /// Bytes of data sent so far.
    pub(crate) sent: u64,
}

impl Frames {
    pub(crate) fn new(sink: NatsOutput, gateway: GatewayId, job: JobId, attempt: Attempt) -> Self {
        Self { sink, gateway, job, attempt, seq: 0, head: None, begun: Rc::default(), sent: 0 }
    }

    /// The status line, to travel with the first data.
    pub(crate) fn set_head(&mut self, head: Head) {
        self.head = Some(head);
    }

    /// Whether anything but frame 0 was sent.
    pub(crate) fn output_sent(&self) -> bool {
        self.seq > 0
    }

    /// Set with the first frame.
    pub(crate) fn begun(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.begun)
    }

    pub(crate) async fn send(&mut self, data: Bytes, end: Option<End>) -> Result<(), BusError> {
        self.seq += 1;
        self.begun.set(true);
        self.sent += data.len() as u64;
        let frame = Frame {
            attempt: self.attempt,
            seq: self.seq,
            begin: None,
            head: self.head.take(),
            data: (!data.is_empty()).then_some(data),
            end,
        };
        self.sink.send(&self.gateway, self.job, frame).await
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn answer(chunks: &[&'static str]) -> Answer {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        Answer::new(stream::iter(chunks))
    }

    #[actix::test]
    async fn what_can_be_read_at_once_leaves_in_one_piece_with_its_end() {
        let piece = answer(&["a", "b", "c"]).piece(100, true).await;
        assert_eq!(piece.data, "abc");
        assert!(matches!(piece.end, Some(Ok(()))));
    }

    #[actix::test]
    async fn a_piece_never_exceeds_its_room_and_nothing_is_lost() {
        let mut answer = answer(&["abcdefgh", "ij"]);
        let mut seen = Vec::new();
        loop {
            let piece = answer.piece(3, true).await;
            assert!(piece.data.len() <= 3);
            seen.push(String::from_utf8(piece.data.to_vec()).unwrap());
            if piece.end.is_some() {
                break;
            }
        }
        assert_eq!(seen.concat(), "abcdefghij");
    }

    #[actix::test]
    async fn the_end_travels_with_data_that_just_fills_its_room() {
        let mut answer = answer(&["abc", "def"]);
        assert!(answer.piece(3, true).await.end.is_none());
        let last = answer.piece(3, true).await;
        assert_eq!(last.data, "def");
        assert!(last.end.is_some());
    }

    #[actix::test]
    async fn a_stream_does_not_wait_for_more() {
        let slow = stream::iter([Ok(Bytes::from_static(b"first"))]).chain(stream::pending());
        let piece = Answer::new(slow).piece(100, true).await;
        assert_eq!(piece.data, "first");
        assert!(piece.end.is_none());
    }

    #[test]
    fn frames_fit_into_the_servers_limit() {
        assert_eq!(frame_limit(1 << 20, true), STREAMED);
        assert_eq!(frame_limit(64 * 1024, false), 56 * 1024);
    }
}
