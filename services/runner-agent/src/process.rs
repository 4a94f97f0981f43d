//! Engines as bare processes: each its own process group on a free port, in a cgroup of its own where that can be.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use berth_wire::EngineId;
use futures::FutureExt;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tracing::warn;

use crate::cgroup::{Group, Limits, Tree};
use crate::driver::{Doing, Driver, Failure, Instance, Order, PIDS, Progress, TOLD_LINES, starved};
use crate::fill::fill_all;
use crate::logs::Log;
use crate::procs::Mark;
use crate::record::{Leader, Notes, group_gone, group_lives, group_memory, signal_group};
use crate::tail::Tail;

/// Variables that let into the fleet's bus: no engine's business.
const OURS: [&str; 3] = ["BERTH_NATS_TOKEN", "BERTH_NATS_NKEY", "BERTH_NATS_CREDENTIALS"];

/// Runs processes.
#[derive(Debug, Clone)]
pub(crate) struct ProcessDriver {
    notes: Notes,
    /// Where engines get cgroups, if there is such a place.
    tree: Option<Tree>,
    /// Variables of the agent's own that hold passwords.
    hidden: Vec<String>,
}

impl ProcessDriver {
    pub(crate) fn new(notes: Notes, tree: Option<Tree>, hidden: Vec<String>) -> Self {
        Self { notes, tree, hidden }
    }

    /// The engine's own cgroup, with its limits. Without one it runs all the same.
    fn group(&self, order: &Order) -> Result<Option<Group>, Failure> {
        let may = &order.model().engine.container;
        let limits = Limits {
            memory: order.ram.or(may.ram),
            pids: may.pids.unwrap_or(PIDS),
            cpus: may.cpus.as_deref(),
        };
        let can = self.tree.as_ref().map(Tree::controllers).unwrap_or_default();
        let asked = [
            ("ram", "memory", may.ram.is_some()),
            ("pids_limit", "pids", may.pids.is_some()),
            ("cpuset", "cpuset", may.cpus.is_some()),
        ];
        for (field, controller, _) in
            asked.iter().filter(|(_, name, asked)| *asked && !can.iter().any(|can| can == name))
        {
            warn!(engine = %order.engine(), field, controller, "this host cannot limit an engine so");
        }
        let Some(tree) = &self.tree else { return Ok(None) };
        tree.group(order.engine(), limits).map(Some).map_err(Failure::permanent)
    }

    fn spawn(&self, order: &Order) -> Result<Process, Failure> {
        let spec = &order.model().engine;
        let port = choose_port(order)?;
        let values = order.values("127.0.0.1", port);
        let words = fill_all(&spec.command, &values);
        let Some((program, leading)) = words.split_first() else {
            return Err(Failure::permanent("the process driver has nothing to run: set `command`"));
        };
        let mut command = Command::new(program);
        command
            .args(leading)
            .args(order.args(&values))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for name in OURS.into_iter().chain(self.hidden.iter().map(String::as_str)) {
            command.env_remove(name);
        }
        if !order.gpus.is_empty() {
            command.env("CUDA_VISIBLE_DEVICES", order.gpus.join(","));
        }
        if !order.amd.is_empty() {
            command.env("ROCR_VISIBLE_DEVICES", order.amd.join(","));
        }
        command.envs(order.environment(&values));
        let cgroup = self.group(order)?;
        let spawned = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound if std::path::Path::new(program).exists() => {
                Failure::permanent(format!(
                    "cannot run `{program}`: what its first line (`#!`) names does not exist on this host"
                ))
            }
            std::io::ErrorKind::NotFound if program.contains('/') => Failure::permanent(format!(
                "cannot run `{program}`: {program} does not exist on this host; correct `command`"
            )),
            std::io::ErrorKind::NotFound => Failure::permanent(format!(
                "cannot run `{program}`: not found on PATH; install it or correct `command`"
            )),
            std::io::ErrorKind::PermissionDenied => {
                Failure::permanent(format!("cannot run `{program}`: it is not executable; correct `command`"))
            }
            _ => Failure::passing(format!("cannot run `{program}`: {error}")),
        });
        let mut child = match spawned {
            Ok(child) => child,
            Err(failure) => {
                if let Some(cgroup) = &cgroup {
                    cgroup.remove_empty();
                }
                return Err(failure);
            }
        };
        let group = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
        if let (Some(cgroup), Some(pid)) = (&cgroup, child.id())
            && let Err(error) = cgroup.add(pid)
        {
            warn!(engine = %order.engine(), %error, "an engine cannot be put into its cgroup");
        }
        if let Some(leader) = Leader::of(group) {
            self.notes.write(order.engine(), leader, cgroup.as_ref());
        }
        let tail = Tail::new(order.mask(&values));
        if let Some(out) = child.stdout.take() {
            actix_rt::spawn(tail.clone().drain(out));
        }
        if let Some(err) = child.stderr.take() {
            actix_rt::spawn(tail.clone().drain(err));
        }
        Ok(Process {
            engine: order.engine(),
            notes: self.notes.clone(),
            endpoint: format!("127.0.0.1:{port}"),
            child,
            group,
            cgroup,
            tail,
            ended: false,
        })
    }
}

/// A free port, or the model's own where its command line fixes it.
fn choose_port(order: &Order) -> Result<u16, Failure> {
    let spec = &order.model().engine;
    let given = spec.command.iter().chain(&spec.args).chain(&spec.env).any(|text| text.contains("{port}"));
    let wanted = if given { 0 } else { spec.port };
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, wanted))).map_err(|error| {
        Failure::passing(format!(
            "port {wanted} cannot be used on this host: {error}; free it, or write {{port}} into `command` or \
             `args` to be given a free one"
        ))
    })?;
    // Released here and taken by the engine; one that loses the race fails and is reported with its log.
    listener.local_addr().map(|address| address.port()).map_err(|e| Failure::passing(e.to_string()))
}

impl Driver for ProcessDriver {
    fn launch<'a>(
        &'a self,
        order: &'a Order,
        _progress: Progress<'a>,
    ) -> Doing<'a, Result<Box<dyn Instance>, Failure>> {
        async move { self.spawn(order).map(|process| Box::new(process) as Box<dyn Instance>) }.boxed_local()
    }

    fn sweep(&self, engine: EngineId) -> Doing<'_, ()> {
        self.notes.kill(engine).boxed_local()
    }
}

/// A running process group.
#[derive(Debug)]
struct Process {
    engine: EngineId,
    notes: Notes,
    endpoint: String,
    child: Child,
    group: i32,
    cgroup: Option<Group>,
    tail: Tail,
    ended: bool,
}

impl Process {
    /// Whether any process of it does: one that left its process group is in its cgroup still.
    fn lives(&self) -> bool {
        group_lives(self.group) || self.cgroup.as_ref().is_some_and(Group::is_populated)
    }

    fn kill(&self) {
        signal_group(self.group, Signal::SIGKILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    async fn end(&mut self, grace: Duration) {
        if self.ended {
            return;
        }
        if !grace.is_zero() {
            signal_group(self.group, Signal::SIGTERM);
        }
        let asked = async {
            // The leader may go before its workers, which hold memory too.
            let _ = self.child.wait().await;
            while self.lives() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(grace, asked).await.is_err() {
            self.kill();
            let _ = self.child.wait().await;
            group_gone(self.group).await;
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.end().await;
        }
        self.ended = true;
        self.notes.remove(self.engine);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
        }
    }
}

impl Instance for Process {
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn mark(&mut self) -> Doing<'_, Option<Mark>> {
        let pid = u32::try_from(self.group).ok().filter(|pid| *pid > 0);
        let mark = pid.map(|pid| match &self.cgroup {
            Some(cgroup) => Mark::Group(pid, cgroup.folder().to_owned()),
            None => Mark::Process(pid),
        });
        async move { mark }.boxed_local()
    }

    fn log(&self) -> Option<Log> {
        Some(Log::Kept(self.tail.clone()))
    }

    fn exited(&mut self) -> Doing<'_, ()> {
        async {
            // A wait that fails will do so again: what cannot be waited for counts as gone.
            let _ = self.child.wait().await;
        }
        .boxed_local()
    }

    fn how(&mut self) -> Doing<'_, String> {
        async {
            match self.child.wait().await {
                Ok(status) => match self.cgroup.as_ref().and_then(Group::starved_of) {
                    Some(bytes) => starved(bytes),
                    None => describe(status),
                },
                Err(error) => format!("could not be waited for: {error}"),
            }
        }
        .boxed_local()
    }

    fn stop(&mut self, grace: Duration) -> Doing<'_, ()> {
        self.end(grace).boxed_local()
    }

    fn tail(&mut self) -> Doing<'_, Vec<String>> {
        async {
            // What it wrote last may still be in the pipe.
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            self.tail.last(TOLD_LINES)
        }
        .boxed_local()
    }

    fn memory(&mut self) -> Doing<'_, Option<u64>> {
        let charged = self.cgroup.as_ref().and_then(Group::memory);
        std::future::ready(charged.or_else(|| group_memory(self.group))).boxed_local()
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => format!("ended: {status}"),
    }
}
