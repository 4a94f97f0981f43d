//! A fleet of several hosts: nats-server, gateway, health and schedulers here, agents here or each in a namespace of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::bus::Bus;
use crate::config::Config;
use crate::engines::{Engine, Engines};
use crate::fleet::{START, addresses, is_ready};
use crate::gateway::{Answer, Gateway};
use crate::netns::Islands;
use crate::parts::berth;
use crate::role::{Finished, Role, finish};
use crate::run::{SOON, unique};
use crate::{TestNats, until, until_ok};

/// A role with where it runs.
#[derive(Debug)]
struct Placed {
    name: String,
    island: Option<u8>,
    role: Role,
}

/// The fleet. Fields are dropped in their order.
#[derive(Debug)]
pub struct Hosts {
    roles: Vec<Placed>,
    /// Their engines, on all hosts.
    pub engines: Engines,
    /// Its endpoint.
    pub gateway: Gateway,
    /// Where hosts are apart.
    islands: Option<Islands>,
    run: String,
    nats: TestNats,
    config: PathBuf,
    folder: TempDir,
}

impl Hosts {
    /// So many hosts on this machine's own network.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn near(config: &Config, count: u8) -> Self {
        Self::start(config, count, None).await
    }

    /// So many hosts, each in a namespace with a way to NATS alone, and one more namespace for a scheduler.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn apart(config: &Config, count: u8) -> Self {
        Self::start(config, count, Some(Islands::new(count + 1))).await
    }

    async fn start(config: &Config, count: u8, islands: Option<Islands>) -> Self {
        let nats = match &islands {
            Some(islands) => TestNats::start_at(islands.shore().into()),
            None => TestNats::start(),
        };
        let nats = nats.unwrap_or_else(|e| panic!("{e}"));
        let run = unique();
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir().expect("a folder can be made");
        let text = config.text(&run, folder.path(), Some(&nats.url()));
        let file = folder.path().join("berth.toml");
        std::fs::write(&file, &text).expect("the configuration can be written");
        let engines = Engines::new(&run, folder.path(), &text);
        let apart = islands.is_some();
        let mut fleet = Self {
            roles: Vec::new(),
            engines,
            gateway: Gateway::new(""),
            islands,
            run,
            nats,
            config: file,
            folder,
        };
        fleet.add("scheduler", apart.then_some(count));
        fleet.add("gateway", None);
        for n in 0..count {
            fleet.add(&format!("agent-{n}"), apart.then_some(n));
        }
        fleet.until_ready(count).await;
        fleet
    }

    async fn until_ready(&mut self, count: u8) {
        let roles = &mut self.roles;
        self.gateway = until_ok("the fleet is ready", START, async || {
            for placed in roles.iter_mut() {
                if let Some(status) = placed.role.ended() {
                    panic!("{} has ended with {status}", placed.name);
                }
            }
            let gateway = roles.iter().find(|placed| placed.name == "gateway").ok_or("no gateway")?;
            for url in gateway.role.lines().iter().flat_map(|line| addresses(line, "http://")) {
                let probe = Gateway::new(&url);
                if is_ready(&url).await
                    && probe.get("/api/v1/fleet").await.json["hosts"].as_array().map(Vec::len)
                        == Some(count.into())
                {
                    return Ok(probe);
                }
            }
            Err("not all are there")
        })
        .await;
    }

    /// Starts a role: `scheduler`, `gateway` or `agent-N`, on an island or here.
    pub fn add(&mut self, name: &str, island: Option<u8>) {
        let verb = name.split('-').next().unwrap_or(name);
        let mut command = berth();
        command.arg(verb).arg("--config").arg(&self.config).current_dir(self.folder.path());
        command.env("BERTH_DATA_DIR", self.folder.path().join(name)).env("RUST_LOG", "info");
        if verb == "agent" {
            command.env("BERTH_HOST", self.host_of(name));
        }
        let command = match (&self.islands, island) {
            (Some(islands), Some(n)) => islands.within(n, &command),
            _ => command,
        };
        self.roles.push(Placed { name: name.into(), island, role: Role::start(name, command) });
    }

    /// Starts a role again, where it was.
    ///
    /// # Panics
    /// When it still runs.
    pub fn restart(&mut self, name: &str) {
        let place = self.roles.iter().position(|placed| placed.name == name).expect("a known role");
        let mut placed = self.roles.remove(place);
        assert!(placed.role.ended().is_some(), "{name} still runs");
        self.add(name, placed.island);
    }

    /// A role's process.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn role(&mut self, name: &str) -> &mut Role {
        let placed = self.roles.iter_mut().find(|placed| placed.name == name);
        &mut placed.unwrap_or_else(|| panic!("no role `{name}`")).role
    }

    /// The namespaces.
    ///
    /// # Panics
    /// When the hosts are not apart.
    #[must_use]
    pub fn islands(&self) -> &Islands {
        self.islands.as_ref().expect("the hosts are apart")
    }

    /// The name of the host of `agent-N`.
    #[must_use]
    pub fn host_of(&self, agent: &str) -> String {
        format!("{}-{}", self.run, agent.trim_start_matches("agent-"))
    }

    /// The agent (`agent-N`) of a host's name.
    #[must_use]
    pub fn agent_of(&self, host: &str) -> String {
        format!("agent-{}", host.rsplit('-').next().unwrap_or_default())
    }

    /// What KV tells of hosts and engines.
    pub async fn picture(&self) -> Value {
        self.gateway.get("/api/v1/fleet").await.json
    }

    /// The host on which a model has an engine that is ready.
    pub async fn home_of(&self, model: &str) -> String {
        until_ok(&format!("{model} has an engine"), SOON, async || {
            let picture = self.picture().await;
            let engines = picture["engines"].as_array().cloned().unwrap_or_default();
            let found = engines.iter().find(|engine| engine["model"] == model && engine["state"] == "ready");
            found.and_then(|engine| Some(engine["host"].as_str()?.to_owned())).ok_or(picture.to_string())
        })
        .await
    }

    /// The engines of a model that run as processes.
    #[must_use]
    pub fn processes_of(&self, wanted: &str) -> BTreeSet<i32> {
        let of = |engine: Engine| match engine {
            Engine::Process { pid, model } => (model == wanted).then_some(pid),
            Engine::Container { .. } => None,
        };
        self.engines.running().into_iter().filter_map(of).collect()
    }

    /// Runs `berth` on this fleet's bus to its end.
    #[must_use]
    pub fn berth(&self, words: &[&str]) -> Finished {
        finish(self.command(words), SOON)
    }

    /// A command of `berth` on this fleet's bus.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = berth();
        command.args(words).args(["--nats-url", &self.nats.url()]).current_dir(self.folder.path());
        command
    }

    /// Its nats-server.
    pub fn nats(&mut self) -> &mut TestNats {
        &mut self.nats
    }

    /// A look at its bus.
    pub async fn bus(&self) -> Bus {
        Bus::connect(&self.nats.url(), None).await
    }

    /// Waits until some scheduler's log has such a line.
    pub async fn until_said(&mut self, role: &str, part: &str) {
        let role = self.role(role);
        until(&format!("{} says `{part}`", role.name()), SOON * 2, async || {
            role.lines().iter().any(|line| line.contains(part))
        })
        .await;
    }

    /// The folder of this run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A plain chat that is answered as soon as the fleet can.
    ///
    /// # Panics
    /// When it is not answered with 200 in a minute.
    pub async fn answered(&self, model: &str) -> Answer {
        until_ok(&format!("{model} answers"), SOON * 2, async || {
            let answer = self.gateway.chat(model, &serde_json::json!({"max_tokens": 2})).await;
            if answer.status == 200 { Ok(answer) } else { Err(answer.text) }
        })
        .await
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // All are told before any is waited for; an island that is cut off could not say goodbye.
        if let Some(islands) = &self.islands {
            for placed in &self.roles {
                let _ = placed.island.map(|n| islands.try_mend(n));
            }
        }
        for placed in &mut self.roles {
            if placed.role.ended().is_none() {
                placed.role.signal(nix::sys::signal::Signal::SIGTERM);
            }
        }
        self.roles.clear();
        self.engines.clear();
    }
}
