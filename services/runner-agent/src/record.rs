//! A note on disk for each engine process, so that an agent that was killed finds what it left running.

use std::path::{Path, PathBuf};

use berth_wire::EngineId;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::cgroup::Group;

/// A process that leads its own group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    /// Process id, also of the group.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot: tells it from a later process of the same id.
    pub(crate) started: u64,
}

/// What is noted of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    leader: Leader,
    /// The folder of its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<PathBuf>,
}

/// One line of `/proc/<pid>/stat`, as far as it matters.
struct Stat {
    state: char,
    group: i32,
    started: u64,
}

fn stat(pid: &str) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; fields are counted from behind it.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(16)?.parse().ok()?;
    Some(Stat { state, group, started })
}

impl Leader {
    /// Of a running process; `None` where the system has no `/proc`, or it is gone.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        stat(&pid.to_string()).map(|stat| Self { pid, started: stat.started })
    }
}

/// Whether a process group still holds memory; zombies do not.
pub(crate) fn group_lives(group: i32) -> bool {
    if killpg(Pid::from_raw(group), None).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    processes.flatten().any(|entry| {
        entry.file_name().to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())).is_some_and(
            |pid| stat(pid).is_some_and(|stat| stat.group == group && !matches!(stat.state, 'Z' | 'X')),
        )
    })
}

/// Bytes of RAM that a process group holds, what its processes share counted once; `None` where the system has no
/// `/proc`.
pub(crate) fn group_memory(group: i32) -> Option<u64> {
    let mut sum = 0u64;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        if stat(pid).is_some_and(|stat| stat.group == group) {
            let text = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
            sum = sum.saturating_add(kib.unwrap_or(0) << 10);
        }
    }
    (sum > 0).then_some(sum)
}

/// Sends a signal to a group; one that is gone is no error.
pub(crate) fn signal_group(group: i32, signal: Signal) {
    // 0 and 1 would mean ourselves and everybody.
    if group > 1 {
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

/// The folder of notes of this host in this fleet.
#[derive(Debug, Clone)]
pub(crate) struct Notes(PathBuf);

impl Notes {
    pub(crate) fn open(folder: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    fn path(&self, engine: EngineId) -> PathBuf {
        self.0.join(format!("{engine}.json"))
    }

    pub(crate) fn write(&self, engine: EngineId, leader: Leader, group: Option<&Group>) {
        let note = Note { leader, group: group.map(|group| group.folder().to_owned()) };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        if let Err(error) = std::fs::write(self.path(engine), text) {
            warn!(%engine, %error, "cannot note the engine's process; it would be missed after a crash of the agent");
        }
    }

    pub(crate) fn remove(&self, engine: EngineId) {
        let _ = std::fs::remove_file(self.path(engine));
    }

    /// Kills what an earlier run left; returns how many groups.
    pub(crate) async fn kill_leftovers(&self) -> usize {
        let Ok(files) = std::fs::read_dir(&self.0) else { return 0 };
        let mut killed = 0;
        for path in files.flatten().map(|entry| entry.path()) {
            killed += usize::from(kill_noted(&path).await);
            let _ = std::fs::remove_file(&path);
        }
        killed
    }

    /// Kills one engine's process, if its note names one that still runs.
    pub(crate) async fn kill(&self, engine: EngineId) {
        kill_noted(&self.path(engine)).await;
        self.remove(engine);
    }
}

async fn kill_noted(path: &Path) -> bool {
    let Some(noted) = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok())
    else {
        return false;
    };
    let (leader, group) = (noted.leader, noted.group.and_then(Group::noted));
    let led = Leader::of(leader.pid) == Some(leader);
    let grouped = group.as_ref().is_some_and(Group::is_populated);
    if led || grouped {
        info!(pid = leader.pid, "killing an engine process that an earlier run of this agent left");
    }
    if led {
        signal_group(leader.pid, Signal::SIGKILL);
        group_gone(leader.pid).await;
    }
    if let Some(group) = group {
        group.end().await;
    }
    led || grouped
}

/// Waits until nothing of a killed group holds memory; what sits in the kernel for longer is given up.
pub(crate) async fn group_gone(group: i32) {
    let gone = async {
        while group_lives(group) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.is_err() {
        warn!(group, "a killed process group is still there");
    }
}
