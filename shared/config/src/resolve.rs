//! From the file's text to a complete [`Config`], with every problem found in one go.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_wire::{Driver, HostId, Subjects, slug};

use crate::env;
use crate::external;
use crate::health;
use crate::keys;
use crate::model::{self, Surroundings};
use crate::problem::{ConfigError, Findings};
use crate::raw::{RawBus, RawConfig, RawGateway, RawHost, RawModel};
use crate::registry;
use crate::scheduler;
use crate::secret::Secret;
use crate::settings::{BusConfig, Config, GatewayConfig, HostConfig};
use crate::spanned::Spanned;
use crate::telemetry;
use crate::value::{Size, Words, parse_listen};

/// Text of the example at the root of the repository, which `berth up` uses when it is given none.
pub const EXAMPLE: &str = include_str!("../../../berth.toml");

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or says something wrong; then every problem is shown at its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads and checks `text`; `name` is what errors call it, and its folder is where relative paths start.
    ///
    /// # Errors
    /// When it says something wrong; then every problem is shown at its line.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let mut findings = Findings::new(name, text);
        let raw = match toml::from_str::<RawConfig>(text) {
            Ok(raw) => raw,
            Err(error) => {
                findings.add_toml(&error);
                RawConfig::default()
            }
        };
        let base = Path::new(name).parent().unwrap_or(Path::new("."));
        let config = resolve(&raw, base, &mut findings);
        let notes = findings.finish()?;
        Ok(Self { notes, ..config })
    }

    /// The repository's example, built in.
    #[must_use]
    pub fn builtin() -> Self {
        // It is read by a test of this crate, so that it cannot be wrong here.
        Self::parse(EXAMPLE, "berth.toml").unwrap_or_default()
    }

    /// All defaults and no models.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Puts what the environment says (`BERTH_NATS_URL`, `BERTH_NATS_TOKEN`, `BERTH_NATS_NKEY`,
    /// `BERTH_NATS_NKEY_FILE`, `BERTH_NATS_CREDENTIALS`, `BERTH_NATS_REPLICAS`, `BERTH_NATS_CA`, `BERTH_LISTEN`,
    /// `BERTH_METRICS_LISTEN`, `BERTH_PUBLISHED`, `BERTH_HOST`, `BERTH_DOCKER_NETWORK`, `BERTH_KEEP_ENGINES`, and
    /// OpenTelemetry's own) over what the file says.
    ///
    /// # Errors
    /// When a variable holds what cannot be used.
    pub fn apply_environment(&mut self) -> Result<(), String> {
        if let Some(urls) = env::nats_urls() {
            self.bus.urls = urls;
        }
        self.bus.token = env::nats_token().or(self.bus.token.take());
        self.bus.nkey = match (env::nats_nkey(), env::nats_nkey_file()) {
            (None, Some(path)) => {
                Some(read_text(&path).map(|text| Secret::new(text.trim())).map_err(|error| {
                    format!("BERTH_NATS_NKEY_FILE: cannot read {}: {error}", path.display())
                })?)
            }
            (key, _) => key.or(self.bus.nkey.take()),
        };
        self.bus.credentials = env::nats_credentials().or(self.bus.credentials.take());
        self.bus.ca = env::nats_ca().or(self.bus.ca.take());
        if let Some(listen) = env::listen() {
            self.gateway.listen = vec![parse_listen(&listen).map_err(|why| format!("BERTH_LISTEN: {why}"))?];
        }
        if let Some(listen) = env::metrics_listen() {
            let address = parse_listen(&listen).map_err(|why| format!("BERTH_METRICS_LISTEN: {why}"))?;
            self.gateway.metrics_listen = Some(address);
        }
        if let Some(published) = env::published() {
            let address = parse_listen(&published).map_err(|why| format!("BERTH_PUBLISHED: {why}"))?;
            self.gateway.published = Some(address);
        }
        if let Some(replicas) = env::nats_replicas() {
            let number = replicas.parse().ok().filter(|number| REPLICAS.contains(number));
            self.bus.replicas =
                number.ok_or_else(|| format!("BERTH_NATS_REPLICAS: `{replicas}` is not 1, 2, 3, 4 or 5"))?;
        }
        if let Some(network) = env::docker_network() {
            self.host.docker_network = Some(network);
        }
        self.host.keep_engines |= env::keep_engines();
        if let Some(name) = env::host_override() {
            if !slug::is_token(&name) {
                return Err(format!(
                    "BERTH_HOST: `{name}` is no host name; use letters, digits, `-` and `_`"
                ));
            }
            self.host.name = HostId::from(name);
        }
        self.telemetry.apply_environment()
    }
}

/// Reads a file that must be one: a pipe would be waited for.
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(std::io::Error::other("it is a folder, not a file"));
    }
    if !kind.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    std::fs::read_to_string(path)
}

fn resolve(raw: &RawConfig, base: &Path, findings: &mut Findings<'_>) -> Config {
    let host = host(&raw.host, base, findings);
    let scheduler = scheduler::resolve(&raw.scheduler, base, findings);
    let around = Surroundings {
        idle_ttl: scheduler.idle_ttl,
        asleep_ttl: scheduler.asleep_ttl,
        stop_grace: host.stop_grace,
        base,
    };
    let scheduler_idle = scheduler.idle_ttl;
    model::check_unique(&raw.models, findings);
    let models = raw
        .models
        .iter()
        .map(|raw| {
            model::check_labels(&raw.labels, findings);
            check_pin(raw, &host, findings);
            model::resolve(raw, around, findings)
        })
        .collect();
    let health = health::resolve(&raw.health, base, findings);
    Config {
        bus: bus(&raw.bus, base, findings),
        // A key may name models that are yet to be found.
        gateway: gateway(&raw.gateway, if raw.external.is_empty() { &raw.models } else { &[] }, findings),
        host,
        scheduler,
        health,
        telemetry: telemetry::resolve(&raw.telemetry, base, findings),
        models,
        external: external::resolve(&raw.external, scheduler_idle, base, findings),
        notes: Vec::new(),
    }
}

/// nats-server takes messages of 1 MiB unless told otherwise, headers and the job's own fields included.
pub(crate) const INLINE: u64 = 900 * 1024;

/// What JetStream takes.
pub(crate) const REPLICAS: std::ops::RangeInclusive<u32> = 1..=5;

fn bus(raw: &RawBus, base: &Path, findings: &mut Findings<'_>) -> BusConfig {
    let default = BusConfig::default();
    let urls = raw.urls.as_ref().map_or(default.urls, |urls| {
        let list = &urls.get_ref().0;
        if list.is_empty() {
            findings.add(urls.span(), "no NATS server is named", "write urls = [\"nats://127.0.0.1:4222\"]");
        }
        for url in list {
            if let Some(why) = wrong_url(url) {
                findings.add(urls.span(), why, "as in urls = [\"nats://127.0.0.1:4222\"]");
            }
        }
        list.clone()
    });
    let root = raw.root.as_ref().map_or(default.root, |root| {
        if Subjects::new(root.get_ref()).is_none() {
            findings.add(
                root.span(),
                "this is no root of subjects",
                "use words of letters, digits, `-` and `_` with dots between, as in \"berth.v1\"",
            );
        }
        root.get_ref().clone()
    });
    BusConfig {
        urls,
        root,
        token: raw.token.clone().or_else(|| secret_file(raw.token_file.as_ref(), base, findings)),
        credentials: raw.credentials.as_ref().map(|path| below(base, path)),
        nkey: raw.nkey.clone().or_else(|| secret_file(raw.nkey_file.as_ref(), base, findings)),
        replicas: raw.replicas.as_ref().map_or(default.replicas, |replicas| {
            if !REPLICAS.contains(replicas.get_ref()) {
                let help = "1 is for a single server, 3 for a cluster of three";
                findings.add(replicas.span(), "NATS keeps 1 to 5 copies", help);
            }
            *replicas.get_ref()
        }),
        ca: raw.ca.as_ref().map(|path| authority(path, base, findings)),
    }
}

/// What is wrong with the address of a NATS server; it may hold a password, so it is not quoted.
fn wrong_url(url: &str) -> Option<&'static str> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    if !["nats", "tls", "ws", "wss"].contains(&scheme) {
        return Some("a NATS address begins with nats://, tls://, ws:// or wss://");
    }
    let server = rest.rsplit_once('@').map_or(rest, |(_, server)| server);
    let server = server.split('/').next().unwrap_or_default();
    let (host, port) = match server.rsplit_once(':') {
        // A colon within brackets is an IPv6 address's own.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (server, None),
    };
    if host.is_empty() || url.contains(char::is_whitespace) {
        return Some("this is no address of a NATS server");
    }
    port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0))
        .then_some("the port of this NATS address is no port")
}

pub(crate) fn secret_file(
    path: Option<&Spanned<PathBuf>>,
    base: &Path,
    findings: &mut Findings<'_>,
) -> Option<Secret> {
    let path = path?;
    let full = below(base, path.get_ref());
    match read_text(&full) {
        Ok(text) => Some(Secret::new(text.trim())),
        Err(error) => {
            findings.add(
                path.span(),
                format!("cannot read {}: {error}", full.display()),
                "name a file that holds the secret alone",
            );
            None
        }
    }
}

/// The certificate that a server's is checked against.
pub(crate) fn authority(path: &Spanned<PathBuf>, base: &Path, findings: &mut Findings<'_>) -> PathBuf {
    let full = below(base, path.get_ref());
    if let Err(error) = read_text(&full) {
        findings.add(
            path.span(),
            format!("cannot read {}: {error}", full.display()),
            "name the certificate (PEM) of the authority that signed the server's",
        );
    }
    full
}

/// `path` as seen from the configuration's folder.
pub(crate) fn below(base: &Path, path: &Path) -> PathBuf {
    base.join(path.to_str().map_or_else(|| path.to_owned(), env::expand_home))
}

fn gateway(raw: &RawGateway, models: &[RawModel], findings: &mut Findings<'_>) -> GatewayConfig {
    let default = GatewayConfig::default();
    let listen = raw.listen.as_ref().map_or(default.listen, |listen| {
        if listen.get_ref().0.is_empty() {
            findings.add(listen.span(), "no address to listen on", "as in listen = \"127.0.0.1:8421\"");
        }
        listen.get_ref().0.iter().filter_map(|text| address(text, listen, findings)).collect()
    });
    let published = raw.published.as_ref().and_then(|text| address(text.get_ref(), text, findings));
    check_names(&raw.hosts, findings);
    if let Some(workers) = raw.workers.as_ref().filter(|workers| *workers.get_ref() == 0) {
        findings.add(workers.span(), "workers must be at least 1", "leave it out for one per core");
    }
    if let Some(heartbeat) =
        raw.heartbeat.as_ref().filter(|beat| beat.get_ref().0 < Duration::from_millis(100))
    {
        findings.add(heartbeat.span(), "this heartbeat is too short", "10s suits every client known");
    }
    if let Some(silence) =
        raw.body_timeout.as_ref().filter(|limit| limit.get_ref().0 < Duration::from_secs(1))
    {
        findings.add(silence.span(), "this body_timeout is too short", "30s suits every client known");
    }
    let mut size = |value: Option<&Spanned<Size>>, default: u64, least: u64, most: u64| {
        let Some(value) = value else { return default };
        let bytes = value.get_ref().0;
        if !(least..=most).contains(&bytes) {
            let range = format!("it may be {least} to {most} bytes");
            findings.add(value.span(), "this size is out of range", range);
        }
        bytes
    };
    let config = GatewayConfig {
        listen,
        published,
        hosts: raw.hosts.0.iter().map(|name| name.get_ref().clone()).collect(),
        workers: raw.workers.as_ref().map(|workers| *workers.get_ref()),
        inline_limit: size(raw.inline_limit.as_ref(), default.inline_limit, 0, INLINE),
        window: size(raw.window.as_ref(), default.window, 4096, u64::MAX),
        body_limit: size(raw.body_limit.as_ref(), default.body_limit, 1024, 1 << 40),
        body_timeout: raw.body_timeout.as_ref().map_or(default.body_timeout, |span| span.get_ref().0),
        grace: raw.grace.map_or(default.grace, |span| span.0),
        heartbeat: raw.heartbeat.as_ref().map_or(default.heartbeat, |span| span.get_ref().0),
        wait_limit: raw.wait_limit.map_or(default.wait_limit, |span| span.0),
        stream_wait_limit: raw.stream_wait_limit.map_or(default.stream_wait_limit, |span| span.0),
        retry_grace: raw.retry_grace.map_or(default.retry_grace, |span| span.0),
        finish: raw.finish.map_or(default.finish, |span| span.0),
        open: raw.open.as_ref().is_some_and(|open| *open.get_ref()),
        keys: keys::resolve(&raw.keys, models, findings),
        metrics_listen: listener(raw.metrics_listen.as_ref(), findings),
    };
    check_open(raw, &config, findings);
    config
}

/// What may stand in `hosts`.
fn check_names(names: &Words, findings: &mut Findings<'_>) {
    for name in &names.0 {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.get_ref().is_empty() || !name.get_ref().bytes().all(known) {
            let message = format!("`{}` is no name of a host", name.get_ref());
            findings.add(name.span(), message, "write the name alone, as in \"llm.example.org\"");
        }
    }
}

/// Who may come in, where other machines can.
fn check_open(raw: &RawGateway, config: &GatewayConfig, findings: &mut Findings<'_>) {
    if let (true, Some(open), false) = (config.open, &raw.open, config.keys.is_empty()) {
        findings.add(
            open.span(),
            "`open` lets everybody in, and there are API keys below",
            "take out the one or the others",
        );
    }
    if let (Some(address), Some(listen), false, true) =
        (config.exposed(), &raw.listen, config.open, config.keys.is_empty())
    {
        findings.note(
            listen.span(),
            format!("other machines can reach {address}, and no API key is configured"),
            "a gateway starts here only if there is a key: `berth key create NAME --toml` prints one for this file, \
             `berth key create NAME` gives one to the running fleet; or write open = true to let everybody in",
        );
    }
}

/// Where a service's own listener is.
pub(crate) fn listener(text: Option<&Spanned<String>>, findings: &mut Findings<'_>) -> Option<SocketAddr> {
    text.and_then(|text| address(text.get_ref(), text, findings))
}

fn address<T>(text: &str, place: &Spanned<T>, findings: &mut Findings<'_>) -> Option<SocketAddr> {
    match parse_listen(text) {
        Ok(address) => Some(address),
        Err(why) => {
            let (message, help) = why.split_once("; ").unwrap_or((&why, "as in 127.0.0.1:8421"));
            findings.add_within(place.span(), text, message.into(), help.into());
            None
        }
    }
}

fn host(raw: &RawHost, base: &Path, findings: &mut Findings<'_>) -> HostConfig {
    let default = HostConfig::default();
    model::check_labels(&raw.labels, findings);
    let name = raw.name.as_ref().map_or(default.name, |name| {
        if !slug::is_token(name.get_ref()) {
            findings.add(
                name.span(),
                format!("`{}` is no host name", name.get_ref()),
                "use letters, digits, `-` and `_`, as in \"gpu-1\"; leave it out for the machine's own",
            );
        }
        HostId::from(name.get_ref().as_str())
    });
    let drivers = raw.drivers.as_ref().map_or(default.drivers, |drivers| {
        if drivers.get_ref().is_empty() {
            findings.add(
                drivers.span(),
                "without a driver no engine can run here",
                "write drivers = [\"docker\", \"process\"], or leave it out",
            );
        }
        if drivers.get_ref().contains(&Driver::External) {
            findings.add(
                drivers.span(),
                "\"external\" is no driver to choose: it works where there is an [[external]] server",
                "leave it out here",
            );
        }
        drivers.get_ref().clone()
    });
    if let Some(memory) = raw.memory.as_ref().filter(|memory| memory.get_ref().0 == 0) {
        findings.add(memory.span(), "a host needs some memory", "leave it out for what the machine has");
    }
    for memory in [&raw.memory, &raw.sleep_memory, &raw.sleep_spare].into_iter().flatten() {
        model::check_memory(memory, findings);
    }
    HostConfig {
        name,
        labels: raw.labels.texts(),
        memory: raw.memory.as_ref().map(|memory| memory.get_ref().0),
        drivers,
        docker_host: docker_host(raw, findings),
        docker_network: raw.docker_network.clone(),
        registries: registry::resolve(&raw.registries, base, findings),
        state_dir: raw.state_dir.as_deref().map(|dir| below(base, Path::new(dir))),
        stop_grace: raw.stop_grace.map_or(default.stop_grace, |span| span.0),
        keep_engines: raw.keep_engines,
        finish: raw.finish.map_or(default.finish, |span| span.0),
        sleep_memory: raw.sleep_memory.as_ref().map(|memory| memory.get_ref().0),
        metrics_listen: listener(raw.metrics_listen.as_ref(), findings),
        sleep_spare: raw.sleep_spare.as_ref().map_or(default.sleep_spare, |memory| memory.get_ref().0),
    }
}

fn docker_host(raw: &RawHost, findings: &mut Findings<'_>) -> Option<String> {
    let host = raw.docker_host.as_ref()?;
    if !["unix:///", "tcp://"].iter().any(|scheme| host.get_ref().starts_with(scheme)) {
        findings.add(
            host.span(),
            "this is no address of a Docker engine",
            "write its socket, as in \"unix:///run/user/1000/docker.sock\", or \"tcp://address:2375\"",
        );
    }
    Some(host.get_ref().clone())
}

/// A pinned model that could run on no host but this one, and that this one has not the memory for.
fn check_pin(raw: &RawModel, host: &HostConfig, findings: &mut Findings<'_>) {
    let (true, Some(needs), Some(has)) = (raw.pin, &raw.memory, host.memory) else { return };
    // Labels that this host lacks say that it is meant for another one.
    if !raw.labels.0.iter().all(|label| host.labels.contains(label.get_ref())) {
        return;
    }
    let accelerators = raw.accelerators.as_ref().map_or(1, |count| *count.get_ref());
    if needs.get_ref().0 > has.saturating_mul(accelerators.into()) {
        findings.add(
            needs.span(),
            format!(
                "this model is pinned and needs {}, but [host] memory is {}",
                crate::show_bytes(needs.get_ref().0),
                crate::show_bytes(has)
            ),
            "raise [host] memory, lower the model's, or give it `labels` of the host that it is for",
        );
    }
}
