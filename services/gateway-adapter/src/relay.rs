//! What becomes of one job's output: a pure state machine from messages to steps.
//!
//! It holds the promise to the client: no byte twice, none out of order, none after a gap that went unnoticed,
//! and exactly one end.

use berth_wire::{
    ApiError, Attempt, Begin, BeginReply, End, Epoch, ErrorKind, Finish, Frame, Head, HostId, Notice, Output,
    Stage, Usage,
};
use bytes::Bytes;

/// How a job ended, for its client.
pub(crate) type Ending = Result<Usage, ApiError>;

/// What one message leads to. Most messages lead to one thing, so this is a plain record without allocations.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Step {
    /// Answer to frame 0.
    pub(crate) reply: Option<BeginReply>,
    /// An attempt was accepted.
    pub(crate) begun: Option<(Attempt, Begin)>,
    /// The engine's status line, for the client.
    pub(crate) head: Option<Head>,
    /// Bytes for the client.
    pub(crate) data: Option<Bytes>,
    /// How far the job is.
    pub(crate) waiting: Option<(Stage, u32, Option<std::time::Duration>)>,
    /// The end; nothing follows it.
    pub(crate) end: Option<Ending>,
    /// What still runs must be told that nobody waits.
    pub(crate) cancel: bool,
    /// An attempt that is heard no more, though its host may not know.
    pub(crate) obsolete: Option<(Attempt, HostId)>,
    /// The host has taken what it was offered.
    pub(crate) taken: bool,
    /// The express lane came to nothing and nothing has reached the client: the job is to be submitted.
    pub(crate) fall_back: bool,
}

/// The attempt that is being heard.
#[derive(Debug)]
struct Run {
    attempt: Attempt,
    host: HostId,
    /// Number of the frame that must come next.
    next: u64,
    headed: bool,
    received: u64,
}

/// The state of one job's output.
#[derive(Debug)]
pub(crate) struct Relay {
    window: u64,
    epoch: Epoch,
    /// The greatest attempt heard of; only a greater one may begin.
    newest: Option<Attempt>,
    run: Option<Run>,
    /// Something of an answer has been handed on; it cannot be taken back.
    forwarded: bool,
    ended: bool,
}

fn refuse(reason: &str) -> Step {
    Step { reply: Some(BeginReply::Refuse { reason: reason.into() }), ..Step::default() }
}

impl Relay {
    /// For a job with `window` bytes of credit.
    pub(crate) fn new(window: u64) -> Self {
        Self { window, epoch: Epoch::default(), newest: None, run: None, forwarded: false, ended: false }
    }

    /// For a job that is offered to `host`: the offer is the permit.
    pub(crate) fn express(window: u64, host: HostId) -> Self {
        let attempt = Attempt::EXPRESS;
        let run = Run { attempt, host, next: 1, headed: false, received: 0 };
        Self { newest: Some(attempt), run: Some(run), ..Self::new(window) }
    }

    /// Whether the attempt that is being heard is the express lane's.
    pub(crate) fn is_express(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.attempt.is_express())
    }

    /// Whether anything has been handed on to the client.
    pub(crate) fn has_forwarded(&self) -> bool {
        self.forwarded
    }

    /// The express attempt is not heard of any more, for this reason.
    pub(crate) fn lost(&mut self, code: &str, message: &str) -> Step {
        if self.ended || !self.is_express() { Step::default() } else { self.broken(code, message) }
    }

    /// Nobody knows of the job any more.
    pub(crate) fn forgotten(&mut self, error: ApiError) -> Step {
        if std::mem::replace(&mut self.ended, true) {
            return Step::default();
        }
        Step { end: Some(Err(error)), cancel: true, ..Step::default() }
    }

    /// The host of the attempt that is being heard.
    pub(crate) fn host(&self) -> Option<&HostId> {
        self.run.as_ref().map(|run| &run.host)
    }

    /// Takes a message in; `consumed` is how many bytes the client has taken by now.
    pub(crate) fn step(&mut self, output: Output, consumed: u64) -> Step {
        match output {
            Output::Frame(frame) if frame.seq == 0 && frame.attempt.is_express() => {
                Step { taken: self.is_express(), ..Step::default() }
            }
            Output::Frame(frame) if frame.seq == 0 => self.begin(frame),
            Output::Declined(_) if self.is_express() && !self.ended && !self.forwarded => {
                self.run = None;
                Step { fall_back: true, ..Step::default() }
            }
            Output::Declined(_) => Step::default(),
            Output::Frame(frame) => self.frame(frame, consumed),
            Output::Notice { epoch, notice } => self.notice(epoch, notice),
        }
    }

    fn begin(&mut self, frame: Frame) -> Step {
        if self.ended {
            return refuse("the job has ended");
        }
        let Some(begin) = frame.begin else { return refuse("frame 0 does not say who serves the attempt") };
        if self.newest.is_some_and(|newest| frame.attempt <= newest) {
            return refuse("a newer attempt is known, or this one is given up");
        }
        if self.forwarded {
            return refuse("output of an earlier attempt has reached the client");
        }
        self.newest = Some(frame.attempt);
        let obsolete = self.give_up();
        self.run = Some(Run {
            attempt: frame.attempt,
            host: begin.host.clone(),
            next: 1,
            headed: false,
            received: 0,
        });
        // Data waits for the permit, so frame 0 holds none; an agent that sends some has it dropped and is
        // found out by its first frame without a head.
        Step {
            reply: Some(BeginReply::Go { credit: self.window }),
            begun: Some((frame.attempt, begin)),
            obsolete,
            ..Step::default()
        }
    }

    fn frame(&mut self, frame: Frame, consumed: u64) -> Step {
        if self.ended {
            return Step::default();
        }
        let window = self.window;
        let Some(run) = self.run.as_mut().filter(|run| run.attempt == frame.attempt) else {
            return Step::default();
        };
        if frame.seq < run.next {
            return Step::default();
        }
        if frame.seq > run.next {
            return self
                .broken("stream_gap", "part of the answer was lost between the engine and the gateway");
        }
        run.next += 1;
        let mut step = Step { taken: run.attempt.is_express() && frame.seq == 1, ..Step::default() };
        if let Some(head) = frame.head
            && !run.headed
        {
            run.headed = true;
            self.forwarded = true;
            step.head = Some(head);
        }
        if let Some(data) = frame.data.filter(|data| !data.is_empty()) {
            if !run.headed {
                return self.broken("bad_stream", "the engine's answer came without its status");
            }
            // An agent may overshoot by the frame that meets the limit, not by more.
            if run.received >= consumed.saturating_add(window) {
                return self.broken("credit_exceeded", "the host sent more than it was allowed to");
            }
            run.received = run.received.saturating_add(data.len() as u64);
            step.data = Some(data);
        }
        if let Some(End { finish, usage }) = frame.end {
            let headed = run.headed;
            if run.attempt.is_express() && !headed {
                // It failed before it began: the queue may do better.
                self.run = None;
                return Step { fall_back: true, ..step };
            }
            self.ended = true;
            step.end = Some(match finish {
                Finish::Stop if headed => Ok(usage),
                Finish::Stop => Err(failed("bad_stream", "the engine ended without an answer")),
                Finish::Error(error) => Err(error),
                Finish::Cancelled => Err(failed("cancelled", "the job was cancelled")),
            });
        }
        step
    }

    fn notice(&mut self, epoch: Epoch, notice: Notice) -> Step {
        if self.ended || epoch < self.epoch {
            return Step::default();
        }
        self.epoch = epoch;
        match notice {
            Notice::Waiting { stage, position, eta } => {
                Step { waiting: Some((stage, position, eta)), ..Step::default() }
            }
            Notice::AttemptLost { attempt, error } => {
                let current = self.run.as_ref().is_some_and(|run| run.attempt == attempt);
                if current && self.forwarded {
                    self.ended = true;
                    return Step { end: Some(Err(error)), cancel: true, ..Step::default() };
                }
                // An attempt given up before its frame 0 came must not begin later.
                self.newest = self.newest.max(Some(attempt));
                let obsolete = if current { self.give_up() } else { None };
                Step { obsolete, ..Step::default() }
            }
            Notice::Failed(error) => {
                self.ended = true;
                // The scheduler has ended the job, but an attempt may still run that it gave up.
                Step { end: Some(Err(error)), cancel: self.run.is_some(), ..Step::default() }
            }
        }
    }

    fn give_up(&mut self) -> Option<(Attempt, HostId)> {
        self.run.take().map(|run| (run.attempt, run.host))
    }

    fn broken(&mut self, code: &str, message: &str) -> Step {
        if self.is_express() && !self.forwarded {
            return Step { fall_back: true, obsolete: self.give_up(), ..Step::default() };
        }
        self.ended = true;
        Step { end: Some(Err(failed(code, message))), cancel: true, ..Step::default() }
    }
}

fn failed(code: &str, message: &str) -> ApiError {
    ApiError::new(ErrorKind::EngineFailed, code, format!("{message}; send the request again"))
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
