//! A streamed answer: chunks that were written beforehand, at the pace of the plan.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::web;
use bytes::Bytes;
use futures::Stream;
use tokio::time::{Instant, Sleep};

use super::answer::Shape;
use super::request::Plan;
use super::stats::Ticket;
use super::{Crash, NAME, Sim};

/// What a client has received by now is flushed before a crash.
const FLUSH: Duration = Duration::from_millis(20);

/// The connection is cut.
#[derive(Debug, thiserror::Error)]
#[error("cut, as the request asked")]
pub(super) struct Cut;

impl actix_web::ResponseError for Cut {}

/// How this answer breaks off, if it does.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Crash,
    Cut,
}

/// The body of a streamed answer. Dropped before its end (the client has gone), it frees its slot and is counted.
pub(super) struct Tokens {
    sim: web::Data<Sim>,
    shape: Shape,
    plan: Plan,
    /// The text of an echo, said as the only token.
    echo: Option<Bytes>,
    opened: bool,
    next: u32,
    tail: VecDeque<Bytes>,
    due: Instant,
    /// None where nothing is waited for: timers cost.
    timer: Option<Pin<Box<Sleep>>>,
    faulted: bool,
    ticket: Ticket,
}

impl Tokens {
    pub(super) fn new(
        sim: web::Data<Sim>,
        shape: Shape,
        plan: Plan,
        echo: Option<Bytes>,
        tail: Vec<Bytes>,
        ticket: Ticket,
    ) -> Self {
        let due = Instant::now() + plan.first_token;
        let timer = (!plan.first_token.is_zero()).then(|| Box::pin(tokio::time::sleep_until(due)));
        Self {
            sim,
            shape,
            plan,
            echo,
            opened: false,
            next: 0,
            tail: tail.into(),
            due,
            timer,
            faulted: false,
            ticket,
        }
    }

    fn fault(&self) -> Option<Fault> {
        if self.plan.crash_after.is_some_and(|after| after <= self.next) {
            Some(Fault::Crash)
        } else if self.plan.cut_after.is_some_and(|after| after <= self.next) {
            Some(Fault::Cut)
        } else {
            None
        }
    }

    fn set_timer(&mut self) {
        if self.plan.per_token.is_zero() {
            return;
        }
        // From the last due time, not from now: the pace does not drift.
        self.due += self.plan.per_token;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(self.due),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(self.due))),
        }
    }
}

impl Stream for Tokens {
    type Item = Result<Bytes, Cut>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(timer) = &mut this.timer
            && timer.as_mut().poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        if let Some(fault) = this.fault() {
            if !this.faulted {
                this.faulted = true;
                let mut timer = Box::pin(tokio::time::sleep(FLUSH));
                let _ = timer.as_mut().poll(cx);
                this.timer = Some(timer);
                return Poll::Pending;
            }
            if let (Fault::Crash, Crash::Process) = (fault, this.sim.crash) {
                crash(this.next);
            }
            return Poll::Ready(Some(Err(Cut)));
        }
        if !this.opened {
            this.opened = true;
            if let Some(open) = this.sim.script.open(this.shape) {
                return Poll::Ready(Some(Ok(open)));
            }
        }
        if this.next < this.plan.tokens {
            let word = match this.echo.take() {
                Some(text) => text,
                None => this.sim.script.word(this.shape, this.next),
            };
            this.next += 1;
            if this.next < this.plan.tokens {
                this.set_timer();
            } else {
                this.timer = None;
            }
            return Poll::Ready(Some(Ok(word)));
        }
        let chunk = this.tail.pop_front();
        if this.tail.is_empty() {
            this.ticket.complete();
        }
        Poll::Ready(chunk.map(Ok))
    }
}

/// Ends the process the way a crashed engine does: at once, with a last line in its log.
pub(super) fn crash(tokens: u32) -> ! {
    eprintln!("{NAME}: crashes after {tokens} tokens, as asked");
    std::process::exit(70)
}
