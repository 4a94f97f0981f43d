//! An engine's log, for an operator who asks on the bus. Requests may be in it: it goes nowhere else.

use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use berth_bus::BusError;
use berth_telemetry::Chain;
use berth_wire::{EngineId, LogAck, LogPiece, ReadLog};
use bollard::Docker;
use bollard::query_parameters::LogsOptionsBuilder;
use futures::stream::LocalBoxStream;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::mask::Mask;
use crate::shared::Shared;
use crate::tail::{Lines, Tail};

/// How long a reader may take with one piece.
const READER: Duration = Duration::from_secs(10);
/// A reader of a log in which nothing happens is asked so often whether it is there.
const QUIET: Duration = Duration::from_secs(5);
/// Bytes of lines in a piece; more only by one chunk of Docker's.
const PIECE: usize = 64 * 1024;
/// Readers at a time on one host.
const READERS: usize = 8;
/// Lines of the past that may be asked for.
const MOST: u32 = 100_000;

/// Where an engine's log is.
#[derive(Debug, Clone)]
pub(crate) enum Log {
    /// Docker keeps it.
    Container { docker: Docker, name: String, mask: Mask },
    /// This agent keeps its end.
    Kept(Tail),
}

/// Lines that are to be told next.
struct Batch {
    lines: String,
    skipped: u64,
}

/// Begins to send an engine's log to who asks.
///
/// # Errors
/// Why that cannot be, for a person.
pub(crate) fn read(shared: &Rc<Shared>, ask: ReadLog) -> Result<(), String> {
    let engine = ask.engine;
    // Else it would be a way to have lines sent to any subject of the fleet.
    let own = shared.bus.subjects.tail(&shared.host, "");
    if !ask.to.starts_with(&own) && !ask.to.starts_with("_INBOX.") {
        return Err(format!("field `to`: lines go to `{own}...` or an inbox (`_INBOX.`) only"));
    }
    let cell = shared.books.borrow().engines.get(&engine).map(|engine| Rc::clone(&engine.cell));
    let Some(cell) = cell else { return Err(format!("engine {engine} is not on this host")) };
    let Some(log) = cell.log() else {
        return Err(format!("engine {engine} has no log yet: it is {}", cell.state().as_str()));
    };
    let reader = Rc::clone(&shared.log_readers);
    if Rc::strong_count(&reader) > READERS + 1 {
        return Err(format!("{READERS} readers of logs are on this host already; end one"));
    }
    info!(%engine, follow = ask.follow, "an operator reads an engine's log");
    let source = Source::open(&log, &ask, cell.gone.clone());
    let shared = Rc::clone(shared);
    actix_rt::spawn(async move {
        send(&shared, engine, ask.to, source).await;
        drop(reader);
    });
    Ok(())
}

async fn send(shared: &Shared, engine: EngineId, to: String, mut source: Source) {
    let mut seq = 0;
    loop {
        let next = tokio::time::timeout(QUIET, source.next()).await;
        let piece = match next {
            Ok(Some(Batch { lines, skipped })) => LogPiece { seq, lines: lines.into(), skipped, end: None },
            Ok(None) => {
                let end = Some(source.end());
                LogPiece { seq, lines: Default::default(), skipped: 0, end }
            }
            Err(_) => LogPiece { seq, lines: Default::default(), skipped: 0, end: None },
        };
        let last = piece.end.is_some();
        match shared.bus.request::<LogPiece, LogAck>(to.clone(), &piece, READER).await {
            Ok(ack) if ack.more && !last => seq += 1,
            Ok(_) | Err(BusError::NoResponders { .. }) => return,
            Err(error) => {
                debug!(%engine, error = %Chain(&error), "a reader of a log does not answer any more");
                return;
            }
        }
    }
}

/// Where lines come from.
enum Source {
    Container {
        stream: LocalBoxStream<'static, Result<bollard::container::LogOutput, bollard::errors::Error>>,
        lines: Lines,
        tail: Tail,
        follow: bool,
        ended: bool,
    },
    Kept {
        tail: Tail,
        next: u64,
        follow: bool,
        gone: CancellationToken,
    },
}

impl Source {
    fn open(log: &Log, ask: &ReadLog, gone: CancellationToken) -> Self {
        let (count, follow) = (ask.tail.min(MOST), ask.follow);
        match log {
            Log::Container { docker, name, mask } => {
                let count = count.to_string();
                let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).tail(&count);
                let stream = docker.logs(name, Some(options.build())).boxed_local();
                // Emptied after each chunk; none has more lines than bytes.
                let tail = Tail::with_room(mask.clone(), PIECE);
                Self::Container { stream, lines: Lines::new(tail.clone()), tail, follow, ended: false }
            }
            Log::Kept(tail) => {
                let next = tail.end().saturating_sub(u64::from(count));
                Self::Kept { tail: tail.clone(), next, follow, gone }
            }
        }
    }

    /// The next lines, once there are some; `None`: there will be no more. May be dropped and asked again.
    async fn next(&mut self) -> Option<Batch> {
        match self {
            Self::Container { stream, lines, tail, ended, .. } => {
                let mut batch = Batch { lines: String::new(), skipped: 0 };
                while !*ended && batch.lines.len() < PIECE {
                    // What is there already goes along.
                    let chunk = match (batch.lines.is_empty(), stream.next()) {
                        (true, next) => next.await,
                        (false, next) => match next.now_or_never() {
                            Some(chunk) => chunk,
                            None => break,
                        },
                    };
                    match chunk {
                        Some(Ok(chunk)) => lines.feed(chunk.as_ref()),
                        Some(Err(_)) | None => {
                            lines.flush();
                            *ended = true;
                        }
                    }
                    for line in tail.take_all() {
                        let _ = writeln!(batch.lines, "{line}");
                    }
                }
                (!batch.lines.is_empty()).then_some(batch)
            }
            Self::Kept { tail, next, follow, gone } => loop {
                // Made before the look, so that no line between the two is missed.
                let news = tail.news();
                let more = news.notified();
                let over = gone.is_cancelled() || !*follow;
                let (lines, skipped) = tail.from(*next, PIECE);
                if !lines.is_empty() {
                    *next += skipped + lines.len() as u64;
                    let lines = lines.iter().fold(String::new(), |mut text, line| {
                        let _ = writeln!(text, "{line}");
                        text
                    });
                    return Some(Batch { lines, skipped });
                }
                if over {
                    return None;
                }
                tokio::select! {
                    () = more => {}
                    () = gone.cancelled() => {}
                }
            },
        }
    }

    fn end(&self) -> String {
        let (Self::Container { follow, .. } | Self::Kept { follow, .. }) = self;
        if *follow { "the engine has ended".into() } else { "that is all".into() }
    }
}
