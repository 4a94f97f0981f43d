//! Engines as Docker containers.

use std::time::{Duration, Instant};

use berth_telemetry::Chain;
use berth_wire::{EngineId, StartEngine};
use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    StatsOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures::{FutureExt, StreamExt};
use tracing::{debug, warn};

use crate::docker_spec::{ANY, Owner, container, missing_source, port_key, read_spec, split_image};
use crate::driver::{Doing, Driver, Failure, Instance, Order, Progress, TOLD_LINES};
use crate::layers::Layers;
use crate::mask::Mask;
use crate::tail::{Lines, Tail};

/// How long Docker may take for an ordinary answer.
const ANSWER: Duration = Duration::from_secs(5);
/// A pull that has made no progress for so long is given up.
const PULL_STALL: Duration = Duration::from_secs(180);

/// How long Docker may take to say that a container was killed for want of memory.
const OOM_WORD: Duration = Duration::from_millis(500);

/// Connects and agrees on the API version.
pub(crate) async fn connect() -> Result<Docker, String> {
    let docker = Docker::connect_with_defaults().map_err(|e| Chain(&e).to_string())?;
    match tokio::time::timeout(ANSWER, docker.negotiate_version()).await {
        Ok(Ok(docker)) => Ok(docker),
        Ok(Err(error)) => Err(Chain(&error).to_string()),
        Err(_) => Err("it does not answer".into()),
    }
}

/// The network to put engines on: the configured one, else the one that this agent's own container is on; none
/// when it runs on the host.
async fn own_network(docker: &Docker, configured: Option<&str>) -> Option<String> {
    if let Some(network) = configured {
        return Some(network.to_owned());
    }
    if !std::path::Path::new("/.dockerenv").exists() {
        return None;
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    // Fails where the agent is in a container of another engine than the one it commands.
    let me = docker.inspect_container(hostname.trim(), None::<InspectContainerOptions>).await.ok()?;
    let networks = me.network_settings?.networks?;
    let mut names: Vec<String> =
        networks.into_keys().filter(|name| name != "host" && name != "none").collect();
    // Only networks that somebody made resolve names; they come first.
    names.sort_by_key(|name| name == "bridge");
    names.into_iter().next()
}

/// Runs containers.
#[derive(Debug, Clone)]
pub(crate) struct DockerDriver {
    docker: Docker,
    owner: Owner,
    network: Option<String>,
    /// Whether paths of the host are paths here.
    on_host: bool,
}

/// Whether the paths that Docker sees are the paths that are seen here: not from a container of that Docker, nor with
/// one on another machine. Nothing tells for certain; in doubt it is Docker's business.
async fn sees_dockers_files(docker: &Docker) -> bool {
    if berth_config::env::var("DOCKER_HOST").is_some_and(|host| !host.starts_with("unix://")) {
        return false;
    }
    let root = docker.info().await.ok().and_then(|info| info.docker_root_dir);
    root.is_some_and(|root| std::path::Path::new(&root).is_dir())
}

impl DockerDriver {
    pub(crate) async fn new(docker: Docker, owner: Owner, network: Option<&str>) -> Self {
        let network = own_network(&docker, network).await;
        let on_host = network.is_none() && sees_dockers_files(&docker).await;
        Self { docker, owner, network, on_host }
    }

    async fn pull(&self, image: &str, progress: Progress<'_>) -> Result<(), Failure> {
        match self.docker.inspect_image(image).await {
            Ok(_) => return Ok(()),
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(Failure::passing(format!("Docker does not answer: {}", Chain(&error)))),
        }
        progress(format!("pulling image {image}"));
        let (name, tag) = split_image(image);
        let options = CreateImageOptionsBuilder::new().from_image(name);
        let options = match tag {
            Some(tag) => options.tag(tag),
            None => options,
        };
        let mut steps = self.docker.create_image(Some(options.build()), None, None);
        let mut layers = Layers::default();
        let refused = |why: String| {
            Failure::permanent(format!("image {image} is not on this host and could not be pulled: {why}"))
        };
        loop {
            match tokio::time::timeout(PULL_STALL, steps.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(step))) => {
                    if let Some(percent) = layers.take(step) {
                        progress(format!("pulling image {image}: {percent}%"));
                    }
                }
                Ok(Some(Err(DockerError::DockerResponseServerError { message, .. }))) => {
                    return Err(refused(message));
                }
                Ok(Some(Err(error))) => return Err(refused(Chain(&error).to_string())),
                Err(_) => {
                    return Err(Failure::passing(format!(
                        "pulling image {image} made no progress for {} s",
                        PULL_STALL.as_secs()
                    )));
                }
            }
        }
    }

    async fn start(&self, order: &Order, progress: Progress<'_>) -> Result<Container, Failure> {
        let spec = &order.model().engine;
        let image = spec.image.as_deref().ok_or_else(|| {
            Failure::permanent("the docker driver needs `image`, which this model does not set")
        })?;
        if let Some(source) = missing_source(&spec.volumes).filter(|_| self.on_host) {
            return Err(Failure::permanent(format!(
                "a volume cannot be mounted: source {source} does not exist on the host; create it or correct \
                 `volumes`"
            )));
        }
        self.pull(image, progress).await?;
        progress("creating its container".into());
        let name = self.owner.name(order.engine());
        let mask = order.mask(&order.values(ANY, spec.port));
        self.create(order, &name, &mask).await?;
        if let Err(error) = self.docker.start_container(&name, None::<StartContainerOptions>).await {
            let message = mask.hide(&docker_message(&error));
            let permanent = ["executable file not found", "no such file", "could not select device driver"]
                .iter()
                .any(|known| message.contains(known));
            remove(&self.docker, &name).await;
            return Err(Failure {
                message: format!("its container could not be started: {message}"),
                permanent,
            });
        }
        let seen = self.docker.inspect_container(&name, None::<InspectContainerOptions>).await.ok();
        let endpoint = seen.and_then(|seen| self.endpoint(&seen, spec.port)).unwrap_or_default();
        Ok(Container { docker: self.docker.clone(), name, endpoint, ram: order.ram, mask })
    }

    async fn create(&self, order: &Order, name: &str, mask: &Mask) -> Result<(), Failure> {
        let options = || CreateContainerOptionsBuilder::new().name(name).build();
        let body = container(&self.owner, order, self.network.as_deref());
        let mut made = self.docker.create_container(Some(options()), body.clone()).await;
        if let Err(DockerError::DockerResponseServerError { status_code: 409, .. }) = &made {
            // The name is ours alone, so this is a leftover.
            remove(&self.docker, name).await;
            made = self.docker.create_container(Some(options()), body).await;
        }
        match made {
            Ok(_) => Ok(()),
            Err(error) => {
                let permanent =
                    matches!(error, DockerError::DockerResponseServerError { status_code: 400 | 404, .. });
                let message =
                    format!("its container could not be made: {}", mask.hide(&docker_message(&error)));
                Err(Failure { message, permanent })
            }
        }
    }

    /// Where the engine of a running container is reached.
    fn endpoint(&self, seen: &ContainerInspectResponse, port: u16) -> Option<String> {
        let settings = seen.network_settings.as_ref()?;
        match &self.network {
            Some(network) => {
                let address = settings.networks.as_ref()?.get(network)?.ip_address.clone();
                // An overlay network may not tell the address; the name resolves there.
                let host = address
                    .filter(|a| !a.is_empty())
                    .or_else(|| seen.name.as_ref().map(|name| name.trim_start_matches('/').to_owned()))?;
                Some(format!("{host}:{port}"))
            }
            None => {
                let bound = settings.ports.as_ref()?.get(&port_key(port))?.as_ref()?.first()?;
                Some(format!("127.0.0.1:{}", bound.host_port.as_ref()?))
            }
        }
    }

    /// Containers that an earlier run of this host left. Those that do not run, or do not say what they are, are
    /// removed.
    pub(crate) async fn leftovers(&self) -> Vec<(StartEngine, Box<dyn Instance>)> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&self.owner.filters()).build();
        let listed = match self.docker.list_containers(Some(options)).await {
            Ok(listed) => listed,
            Err(error) => {
                warn!(error = %Chain(&error), "cannot list containers that an earlier run may have left");
                return Vec::new();
            }
        };
        let mut found: Vec<(StartEngine, Box<dyn Instance>)> = Vec::new();
        for summary in listed {
            let Some(id) = summary.id else { continue };
            let seen = self.docker.inspect_container(&id, None::<InspectContainerOptions>).await.ok();
            let running = seen.as_ref().and_then(|s| s.state.as_ref()).and_then(|s| s.running) == Some(true);
            let start = summary.labels.as_ref().and_then(read_spec).filter(|_| running);
            // Docker says 0 for none.
            let limit = seen.as_ref().and_then(|s| s.host_config.as_ref()?.memory);
            let ram = limit.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
            let known = start.and_then(|start| {
                let endpoint = self.endpoint(seen.as_ref()?, start.model.engine.port)?;
                Some((start, endpoint))
            });
            match known {
                Some((start, endpoint)) => {
                    let name = self.owner.name(start.engine);
                    let docker = self.docker.clone();
                    let given = seen.and_then(|seen| seen.config?.env).unwrap_or_default();
                    let mask = mask_of(&start.model.engine.env, &given);
                    found.push((start, Box::new(Container { docker, name, endpoint, ram, mask })));
                }
                None => remove(&self.docker, &id).await,
            }
        }
        found
    }
}

impl Driver for DockerDriver {
    fn launch<'a>(
        &'a self,
        order: &'a Order,
        progress: Progress<'a>,
    ) -> Doing<'a, Result<Box<dyn Instance>, Failure>> {
        async move {
            self.start(order, progress).await.map(|container| Box::new(container) as Box<dyn Instance>)
        }
        .boxed_local()
    }

    fn sweep(&self, engine: EngineId) -> Doing<'_, ()> {
        async move { remove(&self.docker, &self.owner.name(engine)).await }.boxed_local()
    }
}

/// Kills and removes a container; tries again while Docker fails, since its memory counts as free afterwards.
async fn remove(docker: &Docker, name: &str) {
    for _ in 0..10 {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match docker.remove_container(name, Some(options)).await {
            Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return,
            // 409: being removed already.
            Err(error) => debug!(container = name, error = %Chain(&error), "removal failed; trying again"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    warn!(container = name, "could not remove a container");
}

/// Hides what a running container was `given` of what was `asked` for it: this agent's own variables may have changed
/// since. What else is there is the image's own, and no secret.
fn mask_of(asked: &[String], given: &[String]) -> Mask {
    let names: Vec<&str> = asked.iter().filter_map(|entry| entry.split('=').next()).collect();
    let ours =
        given.iter().filter_map(|entry| entry.split_once('=')).filter(|(name, _)| names.contains(name));
    Mask::of(ours.map(|(_, value)| value))
}

fn docker_message(error: &DockerError) -> String {
    match error {
        DockerError::DockerResponseServerError { message, .. } => message.clone(),
        other => Chain(other).to_string(),
    }
}

/// A container that was started.
#[derive(Debug)]
struct Container {
    docker: Docker,
    name: String,
    endpoint: String,
    ram: Option<u64>,
    mask: Mask,
}

impl Container {
    async fn state(&self) -> Result<bollard::models::ContainerState, DockerError> {
        let seen = self.docker.inspect_container(&self.name, None::<InspectContainerOptions>).await?;
        Ok(seen.state.unwrap_or_default())
    }

    /// Waits for its death, through restarts of the Docker engine.
    async fn death(&self) {
        loop {
            let mut wait = self.docker.wait_container(&self.name, None::<WaitContainerOptions>).boxed_local();
            let _ = wait.next().await;
            match self.state().await {
                Ok(state) if state.running == Some(true) => {}
                Ok(_) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return,
                Err(error) => debug!(container = self.name, error = %Chain(&error), "Docker does not answer"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// What Docker says of its end. That memory was the reason it hears by an event of its own, which may come a
    /// moment after the end.
    async fn cause(&self) -> String {
        const KILLED: i64 = 128 + 9;
        let began = Instant::now();
        loop {
            match self.state().await {
                Ok(state) => {
                    let unsure = state.exit_code == Some(KILLED) && state.oom_killed != Some(true);
                    if !unsure || self.ram.is_none() || began.elapsed() >= OOM_WORD {
                        return self.describe(&state);
                    }
                }
                Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
                    return "was removed by somebody else".into();
                }
                Err(error) if began.elapsed() >= OOM_WORD => {
                    return format!("ended, and Docker does not say how: {}", docker_message(&error));
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn describe(&self, state: &bollard::models::ContainerState) -> String {
        let code = state.exit_code.unwrap_or(-1);
        if state.oom_killed == Some(true) {
            return match self.ram {
                Some(bytes) => format!(
                    "was killed for using more than its {} MiB of memory; give the model more `memory`",
                    bytes >> 20
                ),
                None => "was killed for want of memory".into(),
            };
        }
        match state.error.as_deref().filter(|error| !error.is_empty()) {
            Some(error) => format!("ended with exit code {code}: {}", self.mask.hide(error)),
            None => format!("ended with exit code {code}"),
        }
    }
}

impl Instance for Container {
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn exited(&mut self) -> Doing<'_, ()> {
        self.death().boxed_local()
    }

    fn how(&mut self) -> Doing<'_, String> {
        self.cause().boxed_local()
    }

    fn stop(&mut self, grace: Duration) -> Doing<'_, ()> {
        async move {
            if !grace.is_zero() {
                let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
                let docker = self.docker.clone().with_timeout(grace + Duration::from_secs(30));
                let options = StopContainerOptionsBuilder::new().t(seconds).build();
                if let Err(error) = docker.stop_container(&self.name, Some(options)).await {
                    debug!(container = self.name, error = %Chain(&error), "stopping failed; killing");
                }
            }
            remove(&self.docker, &self.name).await;
        }
        .boxed_local()
    }

    fn tail(&mut self) -> Doing<'_, Vec<String>> {
        async move {
            let count = TOLD_LINES.to_string();
            let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&count).build();
            let tail = Tail::new(self.mask.clone());
            let mut lines = Lines::new(tail.clone());
            let read = async {
                let mut logs = self.docker.logs(&self.name, Some(options)).boxed_local();
                while let Some(Ok(piece)) = logs.next().await {
                    lines.feed(piece.as_ref());
                }
            };
            let _ = tokio::time::timeout(ANSWER, read).await;
            lines.finish();
            tail.last(TOLD_LINES)
        }
        .boxed_local()
    }

    fn memory(&mut self) -> Doing<'_, Option<u64>> {
        async move {
            let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
            let mut stats = self.docker.stats(&self.name, Some(options)).boxed_local();
            let stats = tokio::time::timeout(ANSWER, stats.next()).await.ok()??.ok()?;
            let memory = stats.memory_stats?;
            // Files that are cached go when somebody needs the room.
            let cached = memory.stats.as_ref().and_then(|stats| stats.get("inactive_file")).copied();
            memory.usage.map(|usage| usage.saturating_sub(cached.unwrap_or(0)))
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_container_hides_what_it_was_given_and_not_what_its_image_says() {
        let asked = ["HF_TOKEN", "PW=x{port}-of-it"].map(str::to_owned);
        let given = ["HF_TOKEN=of-an-earlier-run", "PW=x8080-of-it", "PATH=/usr/bin"].map(str::to_owned);
        let mask = mask_of(&asked, &given);
        assert_eq!(mask.hide("of-an-earlier-run x8080-of-it /usr/bin"), "*** *** /usr/bin");
    }
}
