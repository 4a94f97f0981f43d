//! Whose a process is, and what RAM engines hold, as `/proc` and cgroups tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use berth_wire::EngineId;

/// How an engine's processes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    /// They are this process and what it started.
    Process(u32),
    /// The same, and all else in the cgroup of this folder.
    Group(u32, PathBuf),
    /// They run in the container of this id.
    Container(String),
}

/// A process may have been started by one that was started by one ...
const GENERATIONS: usize = 64;

/// Whose a process is.
pub(crate) fn owner(pid: u32, marks: &[(EngineId, Mark)]) -> Option<EngineId> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let line = line(pid);
    let is_in = |name: &str| !name.is_empty() && cgroup.contains(name);
    let is = |mark: &Mark| match mark {
        Mark::Process(first) => line.contains(first),
        Mark::Group(first, folder) => {
            line.contains(first) || folder.file_name().and_then(|name| name.to_str()).is_some_and(is_in)
        }
        Mark::Container(id) => is_in(id),
    };
    marks.iter().find(|(_, mark)| is(mark)).map(|(engine, _)| *engine)
}

/// Whether a process is `first`, or was started by it or by one that was.
pub(crate) fn descends(pid: u32, first: u32) -> bool {
    line(pid).contains(&first)
}

/// What a process has started, and what that has.
pub(crate) fn descendants(first: u32) -> impl Iterator<Item = u32> {
    pids().filter(move |pid| *pid != first && descends(*pid, first))
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process, the one that started it, and so on.
fn line(pid: u32) -> Vec<u32> {
    let mut line = vec![pid];
    while line.len() < GENERATIONS
        && let Some(parent) = line.last().and_then(|pid| parent(*pid)).filter(|parent| *parent > 1)
    {
        line.push(parent);
    }
    line
}

/// The fields of `/proc/PID/stat` behind the program's name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The name of a process, for a person.
pub(crate) fn name(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match comm.trim() {
        "" => "a program".into(),
        name => name.chars().filter(|c| !c.is_control()).collect(),
    }
}

/// Bytes of RAM that each engine holds: what its cgroup is charged with, less what could be dropped from the page
/// cache; of a process without one of its own, what is resident of it and of what it started.
pub(crate) fn ram(marks: &[(EngineId, Mark)]) -> BTreeMap<EngineId, u64> {
    let mut held = BTreeMap::new();
    if marks.is_empty() {
        return held;
    }
    let own = marks.iter().filter_map(|(engine, mark)| match mark {
        Mark::Group(_, folder) => Some((*engine, folder.clone())),
        Mark::Process(_) | Mark::Container(_) => None,
    });
    let mut groups: BTreeMap<EngineId, PathBuf> = own.collect();
    for pid in pids() {
        let Some(engine) = owner(pid, marks) else { continue };
        if marks.iter().any(|(id, mark)| *id == engine && matches!(mark, Mark::Container(_)))
            && let Some(group) = memory_group(pid)
        {
            groups.insert(engine, group);
            continue;
        }
        let sum: &mut u64 = held.entry(engine).or_default();
        *sum = sum.saturating_add(resident(pid).unwrap_or(0));
    }
    for (engine, group) in groups {
        if let Some(bytes) = charged(&group) {
            held.insert(engine, bytes);
        }
    }
    held
}

/// Bytes of a process that are in RAM.
fn resident(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The folder of a process's memory cgroup, of either version.
fn memory_group(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let of = |line: &str| -> Option<PathBuf> {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let base = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        Some(Path::new(base).join(path.trim_start_matches('/')))
    };
    text.lines().filter_map(of).find(|path| path.is_dir())
}

/// Bytes that a memory cgroup is charged with, less what could be dropped from the page cache.
pub(crate) fn charged(group: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let charged = read("memory.current").or_else(|| read("memory.usage_in_bytes")).and_then(number)?;
    let stat = read("memory.stat").unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(charged.saturating_sub(cache.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use berth_wire::Epoch;

    use super::*;

    #[test]
    fn what_an_engine_starts_is_its_own() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut line)
            .unwrap();
        let child: u32 = line.trim().parse().unwrap();
        let engine = EngineId::new(Epoch(1), 1);
        let marks = [(engine, Mark::Process(shell.id()))];
        assert_eq!(owner(child, &marks), Some(engine));
        assert_eq!(owner(std::process::id(), &marks), None);
        // Between fork and exec it is the shell still.
        while name(child) == "sh" {
            std::thread::yield_now();
        }
        assert_eq!(name(child), "sleep");
        assert!(ram(&marks).get(&engine).is_some_and(|bytes| *bytes > 0));
        let _ = Command::new("kill").arg(child.to_string()).status();
        shell.wait().unwrap();
    }
}
