//! The body of an answer that the client did not ask for as a stream: whole where it fits into half of the window, else
//! as it comes; and as it comes from the beginning where parts of it are of use.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use berth_wire::{ApiError, Head};
use bytes::Bytes;
use futures::FutureExt;
use tokio::time::{Instant, Sleep};

use crate::anthropic::RequestId;
use crate::client::{Client, Held, Next, SILENCE};
use crate::flow::Piece;
use crate::{engine_errors, error};

/// A plain answer while it comes. Dropped before its end, it cancels its job; until then it may change hands.
pub(crate) struct Reading {
    pub(crate) client: Box<Client>,
    pub(crate) head: Option<Head>,
    held: Held,
    ended: bool,
}

impl Reading {
    pub(crate) fn new(client: Box<Client>) -> Self {
        Self { client, head: None, held: Held::default(), ended: false }
    }

    /// Takes in what has come of it already.
    pub(crate) fn take(&mut self, piece: Piece) {
        if self.head.is_none() {
            self.head = piece.head;
        }
        self.held.push(piece.data.unwrap_or_default());
    }

    /// Reads until the end, or until more would need the client to take some of it. An answer that breaks off before is
    /// an error with a status of its own. What was read is kept when this is dropped.
    pub(crate) async fn read(&mut self) -> Result<(), ApiError> {
        while self.held.len <= self.client.window() / 2 {
            match self.client.next().await {
                Next::Piece(piece) => self.take(piece),
                Next::End(Ok(_)) => {
                    self.ended = true;
                    return Ok(());
                }
                Next::End(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in what has come already, to pass on the rest as it comes.
    pub(crate) fn flow(&mut self) -> Result<(), ApiError> {
        while self.held.len <= self.client.window() / 2 {
            match self.client.next().now_or_never() {
                Some(Next::Piece(piece)) => self.take(piece),
                Some(Next::End(Ok(_))) => {
                    self.ended = true;
                    return Ok(());
                }
                Some(Next::End(Err(error))) => return Err(error),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    pub(crate) fn into_parts(self) -> (Box<Client>, Held) {
        (self.client, self.held)
    }

    /// Says an engine's error in the words of the route, once it is whole.
    pub(crate) fn reword(&mut self, head: Head) -> Head {
        let route = self.client.route();
        if !self.ended || !engine_errors::is_one(route, &head) {
            return head;
        }
        let request = self.client.request().map(RequestId::as_str);
        let (head, body) = engine_errors::in_words(route, head, self.held.join(), request);
        self.held.push(body);
        head
    }

    /// What was read, as a body that reads on if there is more.
    pub(crate) fn body(self) -> Answer {
        let rest = if self.ended { None } else { Some(self.client) };
        Answer { held: self.held, rest, silence: Box::pin(tokio::time::sleep(SILENCE)) }
    }
}

/// A plain answer as far as it has been read, and what follows.
pub(crate) struct Answer {
    held: Held,
    /// There is more to come.
    rest: Option<Box<Client>>,
    /// Ends an answer whose end was lost.
    silence: Pin<Box<Sleep>>,
}

impl MessageBody for Answer {
    type Error = ApiError;

    fn size(&self) -> BodySize {
        if self.rest.is_some() { BodySize::Stream } else { BodySize::Sized(self.held.len) }
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ApiError>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.held.pop() {
                if let Some(client) = &mut this.rest {
                    client.took(bytes.len());
                }
                return Poll::Ready(Some(Ok(bytes)));
            }
            let Some(client) = &mut this.rest else { return Poll::Ready(None) };
            match client.poll_next(cx) {
                Poll::Pending => {
                    if this.silence.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    this.rest = None;
                    return Poll::Ready(Some(Err(error::waited(SILENCE))));
                }
                Poll::Ready(Next::Piece(piece)) => {
                    this.silence.as_mut().reset(Instant::now() + SILENCE);
                    this.held.push(piece.data.unwrap_or_default());
                }
                Poll::Ready(Next::End(ending)) => {
                    this.rest = None;
                    // The status has been sent: an error cuts the connection, so that the client sees it.
                    return Poll::Ready(ending.err().map(Err));
                }
            }
        }
    }
}
