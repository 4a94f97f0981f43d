//! A whole fleet: `berth up`, or its four roles as processes of their own on one nats-server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_testkit::nats::TestNats;
use berth_testkit::wait::until_ok;
use tempfile::TempDir;

use crate::bus::Bus;
use crate::config::Config;
use crate::engines::Engines;
use crate::gateway::Gateway;
use crate::parts::berth;
use crate::permits::Permits;
use crate::role::Role;
use crate::run::unique;

/// A start includes finding parts, nats-server and the first election.
pub(crate) const START: Duration = Duration::from_secs(45);

/// The roles of a fleet of separate processes, in the order of their start.
const ROLES: [&str; 4] = ["scheduler", "health", "agent", "gateway"];

/// A running fleet. Stopped in good order when dropped; what is left of it then is killed.
///
/// Fields are dropped in their order: the roles before the nats-server they use.
#[derive(Debug)]
pub struct Berth {
    roles: Vec<Role>,
    /// Its engines.
    pub engines: Engines,
    /// Its endpoint.
    pub gateway: Gateway,
    config: PathBuf,
    nats_url: String,
    nats: Option<TestNats>,
    folder: TempDir,
}

impl Berth {
    /// `berth up`, with a nats-server of its own.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn up(config: &Config) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir().expect("a folder can be made");
        Self::start(config, None, &["up"], unique(), folder).await
    }

    /// Four processes on one nats-server.
    ///
    /// # Panics
    /// When they do not get ready.
    pub async fn fleet(config: &Config) -> Self {
        let run = unique();
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir().expect("a folder can be made");
        let permissions = config.permissions || std::env::var_os("BERTH_TEST_PERMISSIONS").is_some();
        let authorization = if permissions { Permits::make(folder.path(), &run) } else { String::new() };
        let nats = TestNats::start_with(&authorization).unwrap_or_else(|e| panic!("{e}"));
        Self::start(config, Some(nats), &ROLES, run, folder).await
    }

    async fn start(
        config: &Config,
        nats: Option<TestNats>,
        roles: &[&str],
        run: String,
        folder: TempDir,
    ) -> Self {
        let text = config.text(&run, folder.path(), nats.as_ref().map(TestNats::url).as_deref());
        let file = folder.path().join("berth.toml");
        std::fs::write(&file, &text).expect("the configuration can be written");
        let engines = Engines::new(&run, folder.path(), &text);
        let started = roles.iter().map(|role| start_role(role, &file, folder.path())).collect();
        let mut fleet = Self {
            roles: started,
            engines,
            gateway: Gateway::new(""),
            config: file,
            nats_url: nats.as_ref().map(TestNats::url).unwrap_or_default(),
            nats,
            folder,
        };
        fleet.until_ready().await;
        fleet
    }

    /// Waits until the gateway would take a request, and learns the addresses.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn until_ready(&mut self) {
        let roles = &mut self.roles;
        let found = until_ok("the fleet is ready", START, async || {
            for role in roles.iter_mut() {
                if let Some(status) = role.ended() {
                    panic!("{} has ended with {status}", role.name());
                }
            }
            let gateway =
                roles.iter().find(|role| matches!(role.name(), "up" | "gateway")).ok_or("no gateway")?;
            let lines = gateway.lines();
            let urls = lines.iter().flat_map(|line| addresses(line, "http://")).collect::<Vec<_>>();
            for url in urls {
                let probe = Gateway::new(&url);
                if is_ready(&url).await {
                    let nats = lines.iter().flat_map(|line| addresses(line, "nats://")).next();
                    return Ok((probe, nats));
                }
            }
            Err(format!("no address of {} is ready", gateway.name()))
        })
        .await;
        self.gateway = found.0;
        if self.nats.is_none() {
            let url = found.1.unwrap_or_default();
            let token = std::fs::read_to_string(self.folder.path().join("data/nats/token"));
            let token = token.expect("`berth up` has written its NATS token");
            self.nats_url = url.replace("nats://", &format!("nats://{}@", token.trim()));
        }
    }

    /// A role's process.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn role(&mut self, name: &str) -> &mut Role {
        let roles = &mut self.roles;
        roles.iter_mut().find(|role| role.name() == name).unwrap_or_else(|| panic!("no role `{name}`"))
    }

    /// Starts a role again that has ended.
    ///
    /// # Panics
    /// When it still runs.
    pub fn restart(&mut self, name: &str) {
        let (config, folder) = (self.config.clone(), self.folder.path().to_path_buf());
        let role = self.role(name);
        assert!(role.ended().is_some(), "{name} still runs");
        *role = start_role(name, &config, &folder);
    }

    /// Starts a second gateway, and gives its client once it is ready: `role("gateway")` stays the first.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn second_gateway(&mut self) -> Gateway {
        self.roles.push(start_role("gateway", &self.config, self.folder.path()));
        let role = self.roles.last_mut().expect("it was just added");
        until_ok("the second gateway is ready", START, async || {
            if let Some(status) = role.ended() {
                panic!("the second gateway has ended with {status}");
            }
            for url in role.lines().iter().flat_map(|line| addresses(line, "http://")) {
                if is_ready(&url).await {
                    return Ok(Gateway::new(&url));
                }
            }
            Err("no address of it is ready")
        })
        .await
    }

    /// Its nats-server, where it is the test's.
    ///
    /// # Panics
    /// When it is its own.
    pub fn nats(&mut self) -> &mut TestNats {
        self.nats.as_mut().expect("`berth up` has a nats-server of its own")
    }

    /// Address of its nats-server, with the token of one that is its own.
    #[must_use]
    pub fn nats_url(&self) -> &str {
        &self.nats_url
    }

    /// A look at its bus.
    ///
    /// # Panics
    /// When its nats-server does not answer.
    pub async fn bus(&self) -> Bus {
        assert!(!self.nats_url.is_empty(), "`berth up` has said where its NATS is");
        Bus::connect(&self.nats_url, Permits::of(self.folder.path(), "operator").as_deref()).await
    }

    /// All that its roles have said of permissions that they lack.
    #[must_use]
    pub fn denials(&self) -> Vec<String> {
        let said = self.roles.iter().flat_map(|role| {
            let name = role.name().to_owned();
            role.lines().into_iter().map(move |line| format!("{name}: {line}"))
        });
        said.filter(|line| line.contains("does not let us") || line.contains("does not take an answer"))
            .collect()
    }

    /// A command of the program as a person would give it, who has the operator's key where keys are wanted.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = berth();
        command.args(args).arg("--config").arg(&self.config).current_dir(self.folder.path());
        if let Some(key) = Permits::of(self.folder.path(), "operator") {
            command.env("BERTH_NATS_NKEY", key);
        }
        command
    }

    /// The folder of this run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        // The agent last of all would be killed with its engines running: all are told before any is waited for.
        for role in &mut self.roles {
            if role.ended().is_none() {
                role.signal(nix::sys::signal::Signal::SIGTERM);
            }
        }
        self.roles.clear();
        self.engines.clear();
    }
}

fn start_role(name: &str, config: &Path, folder: &Path) -> Role {
    let mut command = berth();
    command.arg(name).arg("--config").arg(config).env("BERTH_DATA_DIR", folder.join("data"));
    command.env("RUST_LOG", "info");
    if name == "up" {
        command.arg("--listen").arg("127.0.0.1:0").arg("--data-dir").arg(folder.join("data"));
    }
    if let Some(key) = Permits::of(folder, name) {
        command.env("BERTH_NATS_NKEY", key);
    }
    command.current_dir(folder);
    Role::start(name, command)
}

/// Loopback addresses with a port in a line of output.
pub(crate) fn addresses(line: &str, scheme: &str) -> Vec<String> {
    line.match_indices(scheme)
        .filter_map(|(at, _)| {
            let rest = line[at..].strip_prefix(scheme)?.strip_prefix("127.0.0.1:")?;
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            (!port.is_empty() && port != "0").then(|| format!("{scheme}127.0.0.1:{port}"))
        })
        .collect()
}

/// Only a gateway lists models; `/readyz` alone would also be answered by health.
pub(crate) async fn is_ready(url: &str) -> bool {
    let ok = async |path: &str| {
        let answer =
            reqwest::Client::new().get(format!("{url}{path}")).timeout(Duration::from_secs(5)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    };
    ok("/readyz").await && ok("/v1/models").await
}
