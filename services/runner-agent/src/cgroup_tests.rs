use std::process::{Child, Command};

use berth_wire::Epoch;

use super::*;
use crate::record::{Leader, Notes};

fn engine() -> EngineId {
    EngineId::new(Epoch(1), 1)
}

#[test]
fn the_agents_group_is_found_where_the_tree_is_mounted() {
    let mounts = "24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    let unit = "0::/system.slice/berth-agent.service\n";
    let found = |cgroup, mounts| own_group(cgroup, mounts).map(|path| path.display().to_string());
    assert_eq!(found(unit, mounts).unwrap(), "/sys/fs/cgroup/system.slice/berth-agent.service");
    let hybrid = "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let own = "4:memory:/a\n1:name=systemd:/b\n0::/user.slice/user-1000.slice\n";
    assert_eq!(found(own, hybrid).unwrap(), "/sys/fs/cgroup/unified/user.slice/user-1000.slice");
    // A part of the tree alone is mounted.
    let part = "31 24 0:27 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    assert_eq!(found("0::/docker/abc/x\n", part).unwrap(), "/sys/fs/cgroup/x");
    assert_eq!(found("0::/elsewhere\n", part), None);
    assert_eq!(found("4:memory:/a\n", mounts), None);
}

/// Files as the kernel has them in a group, as far as they are named.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn an_engine_is_limited_by_what_the_host_has_controllers_for() {
    let files = ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpuset.cpus"];
    let all = folder(&files.map(|name| (name, "")));
    let mut group = Group { folder: all.path().into(), memory: None };
    let limits = Limits { memory: Some(3 << 30), pids: 99, cpus: Some("0-3,8") };
    group.limit(limits).unwrap();
    let written = files.map(|name| fs::read_to_string(all.path().join(name)).unwrap());
    assert_eq!(written, ["3221225472", "0", "1", "99", "0-3,8"]);

    let few = folder(&[("pids.max", "")]);
    let mut group = Group { folder: few.path().into(), memory: None };
    group.limit(limits).unwrap();
    assert_eq!((group.memory, fs::read_dir(few.path()).unwrap().count()), (None, 1), "no file is made");
    let folder = folder(&[]);
    // What the kernel refuses.
    fs::create_dir(folder.path().join("cpuset.cpus")).unwrap();
    let why = Group { folder: folder.path().into(), memory: None }.limit(limits).unwrap_err();
    assert!(why.contains("0-3,8") && why.contains("correct `cpuset`"), "{why}");
}

#[test]
fn an_end_for_want_of_memory_is_told_by_the_kernels_count() {
    let events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n";
    let folder = folder(&[
        ("memory.events", events),
        ("memory.current", "9000\n"),
        ("memory.stat", "inactive_file 1000\n"),
    ]);
    let group = Group { folder: folder.path().into(), memory: Some(7 << 20) };
    assert_eq!((group.starved_of(), group.memory()), (Some(7 << 20), Some(8000)));
    fs::write(folder.path().join("memory.events"), events.replace("oom_kill 2", "oom_kill 0")).unwrap();
    assert_eq!(group.starved_of(), None);
}

/// A group of the real tree for a test, if this machine has one that may be written to.
struct Real(PathBuf);

impl Real {
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = own_group("0::/\n", &mounts)?;
        let folder = root.join(format!("berth-test-{name}-{}", std::process::id()));
        let made = fs::create_dir(&folder);
        if let Err(error) = &made {
            eprintln!("not run: {} cannot be made: {error}", folder.display());
        }
        made.is_ok().then_some(Self(folder))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let group = Group { folder: self.0.clone(), memory: None };
        while group.is_populated() {
            group.kill();
            std::thread::yield_now();
        }
        while !remove(&self.0) {
            std::thread::yield_now();
        }
    }
}

/// An engine with a worker that has made itself a session of its own, which no signal to its group reaches.
fn runaway(group: &Group) -> Child {
    use std::os::unix::process::CommandExt;
    // It waits until it is in the group.
    let script = "read line < \"$1\"; setsid sleep 600 & sleep 600 & wait";
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = Command::new("sh");
    let child = command.args(["-c", script, "sh"]).arg(&gate).process_group(0).spawn().unwrap();
    group.add(child.id()).unwrap();
    fs::write(&gate, "go\n").unwrap();
    let own = Pid::from_raw(child.id().try_into().unwrap());
    let is_apart = |pid: &u32| {
        let pid = Pid::from_raw((*pid).try_into().unwrap());
        nix::unistd::getpgid(Some(pid)).is_ok_and(|group| group != own)
    };
    let ready = |members: Vec<u32>| members.len() >= 3 && members.iter().any(is_apart);
    while !ready(members(group.folder())) {
        std::thread::yield_now();
    }
    child
}

#[actix::test]
async fn all_that_an_engine_has_started_is_killed_with_it() {
    let Some(real) = Real::new("kill") else { return };
    let tree = Tree::at(&real.0, Path::new("/state"), &[], |_| false).unwrap();
    let group = tree.group(engine(), Limits { pids: 99, ..Limits::default() }).unwrap();
    let mut child = runaway(&group);
    crate::record::signal_group(child.id().try_into().unwrap(), Signal::SIGKILL);
    child.wait().unwrap();
    assert!(group.is_populated(), "one of them is in another session");
    group.end().await;
    assert!(!group.folder().exists());
}

#[actix::test]
async fn groups_of_a_killed_agent_are_killed_and_removed_and_those_of_others_are_not() {
    let Some(real) = Real::new("left") else { return };
    let [mine, theirs] =
        ["/mine", "/theirs"].map(|state| Tree::at(&real.0, Path::new(state), &[], |_| false).unwrap());
    let groups =
        [&mine, &theirs].map(|tree| tree.group(engine(), Limits { pids: 99, ..Limits::default() }).unwrap());
    let mut children = [runaway(&groups[0]), runaway(&groups[1])];
    assert_eq!(mine.clear().await, 1);
    assert!(!children[0].wait().unwrap().success());
    assert!(!groups[0].folder().exists() && groups[1].is_populated());
    // By its note, wherever the tree of the next agent is.
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::open(folder.path().into()).unwrap();
    let leader = Leader::of(children[1].id().try_into().unwrap()).unwrap();
    notes.write(engine(), leader, Some(&groups[1]));
    children[1].kill().unwrap();
    children[1].wait().unwrap();
    assert_eq!(notes.kill_leftovers().await, 1);
    assert!(!groups[1].folder().exists());
}

#[actix::test]
async fn the_agent_makes_room_so_that_its_engines_can_be_limited() {
    let Some(real) = Real::new("room") else { return };
    let controllers = words(&real.0, "cgroup.controllers");
    let own = Group { folder: real.0.clone(), memory: None };
    let (mut agent, mut other) = (
        Command::new("sleep").arg("600").spawn().unwrap(),
        Command::new("sleep").arg("600").spawn().unwrap(),
    );
    own.add(agent.id()).unwrap();
    own.add(other.id()).unwrap();
    let wanted: Vec<&str> = controllers.iter().map(String::as_str).collect();
    let find = || Tree::at(&real.0, Path::new("/state"), &wanted, |pid| pid == agent.id()).unwrap();
    find();
    assert_eq!(members(&real.0.join(LEAF)), [agent.id()]);
    assert_eq!(members(&real.0), [other.id()], "what is not ours stays");
    assert!(words(&real.0, "cgroup.subtree_control").is_empty(), "and keeps controllers from being given");
    other.kill().unwrap();
    other.wait().unwrap();
    // Where systemd has put the agent into the group, as the units ask for.
    let settled = Tree::at(&real.0.join(LEAF), Path::new("/state"), &wanted, |_| false).unwrap();
    assert_eq!(settled.folder(), real.0);
    let given = words(&real.0, "cgroup.subtree_control");
    assert_eq!(given, controllers);
    let group = settled.group(engine(), Limits { pids: 99, ..Limits::default() }).unwrap();
    assert_eq!(words(group.folder(), "cgroup.controllers"), controllers);
    group.end().await;
    agent.kill().unwrap();
    agent.wait().unwrap();
}
