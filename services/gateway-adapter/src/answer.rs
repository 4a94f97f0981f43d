//! The body of an answer that the client did not ask for as a stream: whole where it fits into half of the window, else
//! as it comes; and as it comes from the beginning where parts of it are of use.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use berth_wire::ApiError;
use bytes::Bytes;
use futures::FutureExt;
use tokio::time::{Instant, Sleep};

use crate::client::{Client, Held, Next, SILENCE};
use crate::error;

/// An answer as far as it has been read.
pub(crate) struct Answer {
    held: Held,
    /// There is more to come.
    rest: Option<Client>,
    /// Ends an answer whose end was lost.
    silence: Pin<Box<Sleep>>,
}

/// Reads an answer until its end, or until more would need the client to take some of it. An answer that breaks
/// off before is an error with a status of its own.
pub(crate) async fn read(mut client: Client, first: Option<Bytes>) -> Result<Answer, ApiError> {
    let mut held = Held::default();
    held.push(first.unwrap_or_default());
    while held.len <= client.window() / 2 {
        match client.next().await {
            Next::Piece(piece) => held.push(piece.data.unwrap_or_default()),
            Next::End(Ok(_)) => {
                return Ok(Answer::new(held, None));
            }
            Next::End(Err(error)) => return Err(error),
        }
    }
    Ok(Answer::new(held, Some(client)))
}

/// Reads what of an answer is there already, to pass on the rest as it comes. One that breaks off by then is an error
/// with a status of its own; later it cuts the client's connection.
pub(crate) fn flow(mut client: Client, first: Option<Bytes>) -> Result<Answer, ApiError> {
    let mut held = Held::default();
    held.push(first.unwrap_or_default());
    while held.len <= client.window() / 2 {
        match client.next().now_or_never() {
            Some(Next::Piece(piece)) => held.push(piece.data.unwrap_or_default()),
            Some(Next::End(Ok(_))) => return Ok(Answer::new(held, None)),
            Some(Next::End(Err(error))) => return Err(error),
            None => break,
        }
    }
    Ok(Answer::new(held, Some(client)))
}

impl Answer {
    fn new(held: Held, rest: Option<Client>) -> Self {
        Self { held, rest, silence: Box::pin(tokio::time::sleep(SILENCE)) }
    }
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
