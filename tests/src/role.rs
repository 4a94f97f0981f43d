//! One process of the program: started, heard, harmed, stopped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::SOON;

/// Lines of a failed test's log that are shown.
const SHOWN: usize = 60;

/// A process and what it has said.
#[derive(Debug)]
pub struct Role {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Role {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("piped"), Arc::clone(&lines));
        collect(child.stderr.take().expect("piped"), Arc::clone(&lines));
        Self { name: name.into(), child, lines }
    }

    /// What it was started as.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines of both outputs so far.
    ///
    /// # Panics
    /// When a reader has panicked.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("a reader does not panic").clone()
    }

    /// Its status once it has ended by itself.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id"));
        kill(pid, signal).unwrap_or_else(|e| panic!("{} cannot be sent {signal}: {e}", self.name));
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and its status when it has ended.
    ///
    /// # Panics
    /// When it does not end soon.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(SOON)
            .unwrap_or_else(|| panic!("{} does not stop when told to:\n{}", self.name, self.tail()))
    }

    /// Its status, if it ends in time.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines();
        let from = lines.len().saturating_sub(SHOWN);
        format!("--- {} ({} lines)\n{}\n", self.name, lines.len(), lines[from..].join("\n"))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
        if self.ended().is_none() {
            // In good order first, so that it stops its engines.
            self.signal(Signal::SIGTERM);
            if self.wait(Duration::from_secs(15)).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

fn collect(pipe: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            lines.lock().expect("no reader panics").push(String::from_utf8_lossy(&line).into_owned());
        }
    });
}

/// A command that has run to its end.
#[derive(Debug)]
pub struct Finished {
    /// Whether its status was 0.
    pub ok: bool,
    /// Both outputs.
    pub output: String,
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be run or does not end in time.
#[must_use]
pub fn finish(command: Command, limit: Duration) -> Finished {
    let name = format!("{command:?}");
    let mut role = Role::start(&name, command);
    let status =
        role.wait(limit).unwrap_or_else(|| panic!("{name} does not end within {limit:?}:\n{}", role.tail()));
    // The pipes may still hold a line.
    let deadline = Instant::now() + Duration::from_millis(200);
    let mut known = role.lines().len();
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        let now = role.lines().len();
        if now == known && now > 0 {
            break;
        }
        known = now;
    }
    Finished { ok: status.success(), output: role.lines().join("\n") }
}
