//! The body of a streamed answer: the engine's events, heartbeats while there are none, and an error event if it
//! breaks off.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use berth_wire::{ApiError, Dialect, EndMarker, ErrorKind, Head, Route};
use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use crate::answer::Reading;
use crate::anthropic::RequestId;
use crate::client::{Client, Next};
use crate::events::{Edit, Splitter};
use crate::flow::Piece;
use crate::patience::Patience;
use crate::{engine_errors, error};

/// What a stream does when it has nothing to pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between signs of life.
    pub(crate) heartbeat: Duration,
    /// Until the first data.
    pub(crate) first: Patience,
    /// Between data.
    pub(crate) silence: Duration,
    /// The client takes chunks without choices.
    pub(crate) chunks: bool,
    /// Chunks that tell only usage are not for this client.
    pub(crate) strip: bool,
}

/// After an error event the connection is cut, so that no client takes its end for a success. The event must have left
/// before: what the server has not written by then is lost with the connection.
const CUT: Duration = Duration::from_millis(100);

/// An answer that broke off after its status line was sent; the client has been told why.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off; its client was told why")]
pub(crate) struct BrokenOff;

/// An engine's answer that is no stream of events, found out after the status line was sent.
struct Late {
    status: u16,
    body: Vec<u8>,
}

/// More of a late error than this is not read.
const LATE_MOST: usize = 64 * 1024;

pub(crate) struct EventStream {
    /// Dropped with the end of the answer, or with the body when the client leaves.
    client: Option<Box<Client>>,
    splitter: Splitter,
    marker: EndMarker,
    late: Option<Late>,
    /// Something of our own, to be sent after all that is ready.
    own: Option<Bytes>,
    pace: Pace,
    timer: Pin<Box<Sleep>>,
    sent: Instant,
    heard: Instant,
    /// The engine has answered.
    begun: bool,
    /// Data has come.
    flowing: bool,
    over: bool,
    /// It broke off: its end cuts the connection.
    broken: bool,
}

impl EventStream {
    /// A stream whose engine has answered.
    pub(crate) fn begun(reading: Reading, pace: Pace) -> Self {
        let (client, mut held) = reading.into_parts();
        let mut stream = Self::new(client, pace, Duration::ZERO);
        stream.begun = true;
        while let Some(data) = held.pop() {
            stream.flowing = true;
            stream.marker.see(&data);
            stream.splitter.push(data);
        }
        stream
    }

    /// A stream whose client waits since `waited`: it begins with a heartbeat.
    pub(crate) fn waiting(reading: Reading, pace: Pace, waited: Duration) -> Self {
        // Nothing has come: there would be a status line before it.
        let (client, _) = reading.into_parts();
        let mut stream = Self::new(client, pace, waited);
        stream.heartbeat();
        stream
    }

    fn new(client: Box<Client>, pace: Pace, waited: Duration) -> Self {
        let most = client.window() / 2;
        let edit = Edit::of(&client, pace.strip);
        let at = Instant::now();
        Self {
            marker: EndMarker::of(client.route()),
            client: Some(client),
            splitter: Splitter::new(most, edit),
            late: None,
            own: None,
            pace,
            timer: Box::pin(tokio::time::sleep(pace.heartbeat.min(pace.first.wait.saturating_sub(waited)))),
            sent: at,
            heard: at.checked_sub(waited).unwrap_or(at),
            begun: false,
            flowing: false,
            over: false,
            broken: false,
        }
    }

    fn heartbeat(&mut self) {
        let Some(client) = &self.client else { return };
        self.own = Some(client.heartbeat(self.pace.chunks && !self.flowing));
    }

    fn piece(&mut self, Piece { head, data }: Piece) {
        self.heard = Instant::now();
        if let Some(head) = head
            && !self.begun
        {
            self.begun = true;
            if !is_event_stream(&head) {
                self.late = Some(Late { status: head.status, body: Vec::new() });
            }
        }
        let Some(data) = data else { return };
        match &mut self.late {
            Some(late) => {
                let room = LATE_MOST.saturating_sub(late.body.len());
                late.body.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
                if let Some(client) = &mut self.client {
                    client.took(data.len());
                }
            }
            None => {
                self.flowing = true;
                self.marker.see(&data);
                self.splitter.push(data);
            }
        }
    }

    fn end(&mut self, ending: Result<(), ApiError>) {
        self.over = true;
        match ending {
            Ok(()) => {
                if let Some(late) = self.late.take() {
                    self.own = Some(late.event(self.client.as_deref()));
                    self.broken = true;
                    return;
                }
                self.splitter.flush();
                // A stream that ends without its marker would be read as a success.
                if !self.marker.seen() {
                    self.fail(&incomplete());
                }
            }
            Err(error) => {
                self.splitter.forget();
                self.fail(&error);
            }
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.broken = true;
        let event = said(self.client.as_deref(), error);
        // An event that was passed in part is ended first, or the error would become part of it.
        self.own = Some(if self.splitter.at_boundary() {
            event
        } else {
            [Bytes::from_static(b"\n\n"), event].concat().into()
        });
    }

    /// The timer has run out: says that all is well, or gives up.
    fn tick(&mut self) {
        let at = Instant::now();
        let limit = if self.flowing { self.pace.silence } else { self.pace.first.wait };
        if at.duration_since(self.heard) >= limit {
            let over = if self.flowing { error::waited(limit) } else { self.pace.first.over() };
            self.end(Err(over));
            return;
        }
        let idle = at.duration_since(self.sent);
        if idle >= self.pace.heartbeat && self.splitter.at_boundary() {
            self.heartbeat();
        }
        let next = if idle >= self.pace.heartbeat { self.pace.heartbeat } else { self.pace.heartbeat - idle };
        self.timer.as_mut().reset((at + next).min(self.heard + limit));
    }
}

/// Whether an engine's answer is the stream that was asked for.
pub(crate) fn is_event_stream(head: &Head) -> bool {
    head.status == 200
        && head.content_type.as_deref().is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
}

/// Whether a whole stream of events says that it is complete.
pub(crate) fn check_complete(route: Route, stream: &[u8]) -> Result<(), ApiError> {
    let mut marker = EndMarker::of(route);
    marker.see(stream);
    if marker.seen() { Ok(()) } else { Err(incomplete()) }
}

fn incomplete() -> ApiError {
    ApiError::new(
        ErrorKind::EngineFailed,
        "incomplete_answer",
        "the engine's answer ended before it was complete; send the request again",
    )
}

/// An error in the words of the route.
fn said(client: Option<&Client>, error: &ApiError) -> Bytes {
    client.map_or_else(|| error::event(error), |client| client.error_event(error))
}

impl Late {
    fn event(self, client: Option<&Client>) -> Bytes {
        if let Some(client) = client.filter(|client| client.route().dialect() == Dialect::Anthropic) {
            return engine_errors::event(&self.body, self.status, client.request().map(RequestId::as_str));
        }
        let own = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        if let Some(value) = own.filter(|value| value.get("error").is_some_and(|error| error.is_object())) {
            return format!("data: {value}\n\n").into();
        }
        let kind = if (400..500).contains(&self.status) {
            ErrorKind::InvalidRequest
        } else {
            ErrorKind::EngineFailed
        };
        let message = format!("the engine answered with status {} instead of a stream", self.status);
        said(client, &ApiError::new(kind, "engine_error", message))
    }
}

impl MessageBody for EventStream {
    type Error = BrokenOff;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = &mut *self;
        loop {
            let stripped = std::mem::take(&mut this.splitter.stripped);
            if stripped > 0
                && let Some(client) = &mut this.client
            {
                client.took(stripped);
            }
            if let Some(bytes) = this.splitter.ready.pop() {
                this.sent = Instant::now();
                if let Some(client) = &mut this.client {
                    client.took(bytes.len());
                }
                return Poll::Ready(Some(Ok(bytes)));
            }
            if let Some(own) = this.own.take() {
                this.sent = Instant::now();
                return Poll::Ready(Some(Ok(own)));
            }
            if this.over {
                this.client = None;
                if !this.broken {
                    return Poll::Ready(None);
                }
                if this.sent.elapsed() < CUT {
                    this.timer.as_mut().reset(this.sent + CUT);
                    std::task::ready!(this.timer.as_mut().poll(cx));
                }
                return Poll::Ready(Some(Err(BrokenOff)));
            }
            let Some(client) = &mut this.client else { return Poll::Ready(None) };
            match client.poll_next(cx) {
                Poll::Ready(Next::Piece(piece)) => {
                    this.piece(piece);
                    continue;
                }
                Poll::Ready(Next::End(ending)) => {
                    this.end(ending.map(|_| ()));
                    continue;
                }
                Poll::Pending => {}
            }
            match this.timer.as_mut().poll(cx) {
                Poll::Ready(()) => this.tick(),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
