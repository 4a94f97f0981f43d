//! The core's events on disk, for `berth replay`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use berth_placement::log::{self, LogError};
use berth_placement::{Effect, Event, Policy};
use berth_wire::{Epoch, Timestamp};
use tracing::{info, warn};

/// Lines that may wait for the disk. A disk that is slower than that ends the log: the leader does not wait for it.
const WAITING: usize = 16 * 1024;
/// Bytes after which a log ends, so that it does not fill the disk.
const LIMIT: u64 = 1 << 30;

/// Writes a log of every term. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    lines: SyncSender<String>,
    ended: Arc<AtomicBool>,
    /// Steps of this term.
    steps: Arc<AtomicU64>,
}

impl Recorder {
    /// Appends to the file, which only its owner may read.
    ///
    /// # Errors
    /// When it cannot be opened, or holds what no scheduler wrote.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(why) = berth_config::not_a_record(path) {
            return Err(std::io::Error::other(why));
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let mut file = options.open(path)?;
        let written = file.metadata()?.len();
        if written > 0 {
            // The last line may have been cut off with its scheduler. An empty line does no harm.
            file.write_all(b"\n")?;
        }
        let (lines, waiting) = sync_channel(WAITING);
        let ended = Arc::new(AtomicBool::new(false));
        let writer =
            Writer { path: path.to_owned(), file: BufWriter::new(file), written, ended: Arc::clone(&ended) };
        std::thread::Builder::new().name("recorder".into()).spawn(move || writer.run(&waiting))?;
        info!(path = %path.display(), "recording every decision; replay it with `berth replay`");
        Ok(Self { lines, ended, steps: Arc::default() })
    }

    /// A term begins.
    pub(crate) fn begin(&self, policy: &Policy, epoch: Epoch, at: Timestamp) {
        self.steps.store(0, Ordering::Relaxed);
        self.send(log::header(policy, epoch, at));
    }

    /// A step was taken.
    pub(crate) fn step(&self, at: Timestamp, event: &Event, effects: &[Effect]) {
        if !self.ended.load(Ordering::Relaxed) {
            let n = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
            self.send(log::line(n, at, event, effects));
        }
    }

    fn send(&self, line: Result<String, LogError>) {
        let sent = line.map(|line| self.lines.try_send(line).is_ok());
        // A log with a hole would replay to something else.
        if !matches!(sent, Ok(true)) && !self.ended.swap(true, Ordering::Relaxed) {
            warn!(?sent, "the disk is too slow for the log of decisions, which ends here");
        }
    }
}

struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    ended: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<String>) {
        loop {
            // With nothing to write, what was written goes to the system: a scheduler that is killed loses nothing.
            let done = match lines.try_recv() {
                Ok(line) => self.write(&line),
                Err(TryRecvError::Empty) => self.file.flush().and_then(|()| match lines.recv() {
                    Ok(line) => self.write(&line),
                    Err(_) => Ok(()),
                }),
                Err(TryRecvError::Disconnected) => {
                    let _ = self.file.flush();
                    return;
                }
            };
            let why = match done {
                Err(error) => error.to_string(),
                Ok(()) if self.written > LIMIT => format!("it has {LIMIT} bytes"),
                Ok(()) => continue,
            };
            warn!(path = %self.path.display(), why, "the log of decisions ends here");
            self.ended.store(true, Ordering::Relaxed);
            let _ = self.file.flush();
            return;
        }
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        self.written += line.len() as u64 + 1;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_log_is_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("diary");
        std::fs::write(&foreign, "Dear diary\n").unwrap();
        assert!(Recorder::open(&foreign).unwrap_err().to_string().contains("no scheduler wrote"));
        assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "Dear diary\n", "it is left as it was");
        assert!(Recorder::open(folder.path()).unwrap_err().to_string().contains("it is a folder"));
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(Recorder::open(&pipe).unwrap_err().to_string().contains("no regular file"));
    }

    #[test]
    fn what_it_writes_it_appends_to_and_numbers_each_term_from_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        for epoch in [1, 2] {
            let recorder = Recorder::open(&path).unwrap();
            recorder.begin(&Policy::default(), Epoch(epoch), Timestamp(0));
            recorder.step(Timestamp(1), &Event::Timer, &[]);
            recorder.step(Timestamp(2), &Event::Timer, &[]);
            recorder.begin(&Policy::default(), Epoch(epoch + 10), Timestamp(0));
            recorder.step(Timestamp(1), &Event::Timer, &[]);
            drop(recorder);
            // The writer is a thread of its own.
            let last_term = format!("\"epoch\":{}", epoch + 10);
            loop {
                let text = std::fs::read_to_string(&path).unwrap();
                if text.split_once(&last_term).is_some_and(|(_, rest)| rest.lines().count() == 2) {
                    break;
                }
                std::thread::yield_now();
            }
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(log::BEGINNING));
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 10);
        let mut replay = log::Replay::default();
        for line in lines {
            replay.take(line).unwrap();
        }
    }
}
