//! A cgroup (v2) for each engine that is a process, where the agent has been given a part of the tree: systemd's
//! `Delegate=`, or a tree that is the user's own.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_wire::EngineId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};
use tracing::warn;

use crate::procs::{charged, descendants, descends};

/// Where the agent's own processes are, beside its engines: only a group without processes gives controllers to those
/// below it. Where systemd puts them there itself (`DelegateSubgroup=berth`), that serves as well.
const LEAF: &str = "berth";
/// What engines are limited by.
const WANTED: [&str; 3] = ["cpuset", "memory", "pids"];
/// A killed group may take so long to be empty.
const GONE: Duration = Duration::from_secs(10);

/// The part of the tree in which engines get groups.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    folder: PathBuf,
    /// Begins the names of this agent's groups, and of no other's.
    prefix: String,
}

/// What an engine may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits<'a> {
    pub(crate) memory: Option<u64>,
    pub(crate) pids: u32,
    pub(crate) cpus: Option<&'a str>,
}

/// The group of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    folder: PathBuf,
    /// The limit of its memory, where it has one.
    memory: Option<u64>,
}

impl Tree {
    /// Finds it, and makes it ready; says why there is none. `state` is the folder of the agent's state, which tells
    /// its groups from those of others.
    pub(crate) fn find(state: &Path) -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let own = own_group(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
            .ok_or("there is no cgroup v2 here")?;
        let me = std::process::id();
        Self::at(&own, state, &WANTED, |pid| descends(pid, me))
    }

    fn at(own: &Path, state: &Path, wanted: &[&str], ours: impl Fn(u32) -> bool) -> Result<Self, String> {
        let settled = own.file_name().is_some_and(|name| name == LEAF);
        let folder = own.parent().filter(|_| settled).unwrap_or(own);
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", folder.display());
        access(&folder.join("cgroup.procs"), AccessFlags::W_OK).map_err(|error| told(&error.desc()))?;
        // The root of the whole tree is the only one that may have processes beside groups.
        let root = !folder.join("cgroup.type").exists();
        if !root && !settled {
            let leaf = folder.join(LEAF);
            match fs::create_dir(&leaf) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(told(&error)),
                _ => {}
            }
            for pid in members(folder).into_iter().filter(|pid| ours(*pid)) {
                add(&leaf, pid).map_err(|error| told(&error))?;
            }
        }
        let there = words(folder, "cgroup.controllers");
        for controller in wanted.iter().filter(|name| there.iter().any(|there| there == *name)) {
            // Fails where processes of others are in this group, too.
            let _ = put(folder, "cgroup.subtree_control", &format!("+{controller}"));
        }
        let hash = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
        let mark: String = hash.chars().take(8).collect();
        Ok(Self { folder: folder.to_owned(), prefix: format!("berth-{mark}-") })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What engines can be limited by.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let given = words(&self.folder, "cgroup.subtree_control");
        given.into_iter().filter(|name| WANTED.contains(&name.as_str())).collect()
    }

    /// Kills and removes what an earlier run left; how many groups had processes.
    pub(crate) async fn clear(&self) -> usize {
        let mut killed = 0;
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&self.prefix)) {
                let group = Group { folder: entry.path(), memory: None };
                killed += usize::from(group.is_populated());
                group.end().await;
            }
        }
        killed
    }

    /// Makes the group of an engine; what is wrong with its limits is the error.
    pub(crate) fn group(&self, engine: EngineId, limits: Limits<'_>) -> Result<Group, String> {
        let folder = self.folder.join(format!("{}{engine}", self.prefix));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut group = Group { folder, memory: None };
        match group.limit(limits) {
            Ok(()) => Ok(group),
            Err(why) => {
                remove(&group.folder);
                Err(why)
            }
        }
    }
}

impl Group {
    /// Of a note that an earlier agent left.
    pub(crate) fn noted(folder: PathBuf) -> Option<Self> {
        let ours = folder.file_name().and_then(|name| name.to_str())?.starts_with("berth-");
        (ours && folder.is_dir()).then_some(Self { folder, memory: None })
    }

    /// Sets what can be limited here.
    fn limit(&mut self, limits: Limits<'_>) -> Result<(), String> {
        if let Some(bytes) = limits.memory
            && self.set("memory.max", &bytes.to_string(), "memory")?
        {
            // As of a container: no swap, and an engine that has lost a process is no engine.
            let _ = put(&self.folder, "memory.swap.max", "0");
            let _ = put(&self.folder, "memory.oom.group", "1");
            self.memory = Some(bytes);
        }
        self.set("pids.max", &limits.pids.to_string(), "pids_limit")?;
        if let Some(cpus) = limits.cpus {
            self.set("cpuset.cpus", cpus, "cpuset")?;
        }
        Ok(())
    }

    /// Whether there is such a limit here; says which field is wrong where it is not taken.
    fn set(&self, file: &str, value: &str, field: &str) -> Result<bool, String> {
        match put(&self.folder, file, value) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("the kernel refuses {value} in {file}: {error}; correct `{field}`")),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes in a process, and what it has started by now.
    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        add(&self.folder, pid)?;
        // It has run for a moment, which is hardly enough to start any. What it starts from now on is in it.
        for pid in descendants(pid) {
            let _ = add(&self.folder, pid);
        }
        Ok(())
    }

    /// Takes it away again, before anything was in it.
    pub(crate) fn remove_empty(&self) {
        remove(&self.folder);
    }

    /// Whether a process of it lives.
    pub(crate) fn is_populated(&self) -> bool {
        number(&self.folder, "cgroup.events", "populated").is_some_and(|is| is > 0)
    }

    /// Bytes of memory that it was limited to, if the kernel has killed a process of it for want of memory.
    pub(crate) fn starved_of(&self) -> Option<u64> {
        let killed = number(&self.folder, "memory.events", "oom_kill").is_some_and(|count| count > 0);
        self.memory.filter(|_| killed)
    }

    /// Bytes of memory that it is charged with, without what could be dropped.
    pub(crate) fn memory(&self) -> Option<u64> {
        charged(&self.folder)
    }

    /// Kills all that is in it, whatever it has made of itself.
    pub(crate) fn kill(&self) {
        // Older than Linux 5.14.
        if put(&self.folder, "cgroup.kill", "1").is_err() {
            for pid in members(&self.folder).into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Kills what is left in it, and removes it.
    pub(crate) async fn end(&self) {
        let emptied = async {
            while self.is_populated() {
                self.kill();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // A process that has just died is in it for a moment more.
            while !remove(&self.folder) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(GONE, emptied).await.is_err() {
            warn!(group = %self.folder.display(), "the cgroup of an engine that has ended cannot be removed");
        }
    }
}

/// The folder of this process's group, by `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn own_group(cgroup: &str, mounts: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below).components().collect())
    })
}

/// Writes to a file that is there.
fn put(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(folder.join(file))?.write_all(text.as_bytes())
}

fn add(folder: &Path, pid: u32) -> io::Result<()> {
    put(folder, "cgroup.procs", &pid.to_string())
}

fn words(folder: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn members(folder: &Path) -> Vec<u32> {
    words(folder, "cgroup.procs").iter().filter_map(|pid| pid.parse().ok()).collect()
}

/// A number behind its name in a file of such lines.
fn number(folder: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Removes a group and those that were made below it; whether it is gone.
fn remove(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok() || !folder.exists()
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
