//! Engines as Docker containers.

use std::rc::Rc;
use std::time::Duration;

use berth_actors::Backoff;
use berth_config::{HostConfig, RegistryConfig};
use berth_telemetry::Chain;
use berth_wire::{EngineId, StartEngine};
use bollard::errors::Error as DockerError;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::FutureExt;
use tracing::warn;

use crate::container::{Container, Known, docker_message, mask_of, remove};
use crate::docker_paths::Paths;
use crate::docker_spec::{
    ANY, Owner, container, engine_of, missing_mount, missing_source, port_key, read_spec,
};
use crate::driver::{Doing, Driver, Failure, Instance, Order, Progress};
use crate::mask::Mask;
use crate::network::{self, Place};
use crate::pull::{STALL, name_of, pull};
use crate::record::Leader;
use crate::registry::url_safe;
use crate::watch::Watch;

/// Seconds after which a request counts as lost, as bollard has it by default.
const REQUEST: u64 = 120;
/// How long Docker may take for an ordinary answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// Removing what nobody holds is left for later after so long.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Connects and agrees on the API version.
pub(crate) async fn connect(config: &HostConfig) -> Result<Docker, String> {
    let docker = match &config.docker_host {
        Some(host) if host.starts_with("unix://") => {
            Docker::connect_with_unix(host, REQUEST, API_DEFAULT_VERSION)
        }
        Some(host) => Docker::connect_with_http(host, REQUEST, API_DEFAULT_VERSION),
        None => Docker::connect_with_defaults(),
    };
    let docker = docker.map_err(|e| Chain(&e).to_string())?;
    match tokio::time::timeout(ANSWER, docker.negotiate_version()).await {
        Ok(Ok(docker)) => Ok(url_safe(docker)),
        Ok(Err(error)) => Err(with_hint(Chain(&error).to_string(), config.docker_host.as_deref())),
        Err(_) => Err("it does not answer".into()),
    }
}

/// Docker's usual socket.
const SOCKET: &str = "unix:///var/run/docker.sock";

/// A socket that is there and may not be used: whose it is, and what to do.
fn with_hint(why: String, configured: Option<&str>) -> String {
    use std::os::unix::fs::MetadataExt;
    let host = configured.map(str::to_owned).or_else(|| berth_config::env::var("DOCKER_HOST"));
    let host = host.unwrap_or_else(|| SOCKET.into());
    let socket = host.strip_prefix("unix://").filter(|_| why.contains("Permission denied"));
    let group = socket.and_then(|path| std::fs::metadata(path).ok()).map(|meta| meta.gid());
    match (socket, group) {
        (Some(path), Some(group)) => format!(
            "{why}; {path} belongs to group {group}: add the agent's user to it (under Compose: \
             BERTH_DOCKER_GID={group} in .env)"
        ),
        _ => why,
    }
}

/// Runs containers.
#[derive(Debug, Clone)]
pub(crate) struct DockerDriver {
    docker: Docker,
    owner: Owner,
    network: Option<String>,
    registries: Vec<RegistryConfig>,
    watch: Rc<Watch>,
    /// Held by who looks for the host's own network, and makes it.
    making_network: Rc<tokio::sync::Mutex<()>>,
    /// Whether paths of the host are paths here.
    on_host: bool,
    paths: Rc<Paths>,
}

/// Whether the paths that Docker sees are the paths that are seen here: not from a container of that Docker, nor with
/// one on another machine. Nothing tells for certain; in doubt it is Docker's business.
async fn sees_dockers_files(docker: &Docker, config: &HostConfig) -> bool {
    let host = config.docker_host.clone().or_else(|| berth_config::env::var("DOCKER_HOST"));
    if host.is_some_and(|host| !host.starts_with("unix://")) {
        return false;
    }
    let root = docker.info().await.ok().and_then(|info| info.docker_root_dir);
    root.is_some_and(|root| std::path::Path::new(&root).is_dir())
}

impl DockerDriver {
    pub(crate) async fn new(docker: Docker, owner: Owner, config: &HostConfig) -> Self {
        let me = network::me(&docker).await;
        let network = network::shared(me.as_ref(), config.docker_network.as_deref());
        let sees = sees_dockers_files(&docker, config).await;
        let on_host = network.is_none() && sees;
        Self {
            docker,
            owner,
            network,
            registries: config.registries.clone(),
            watch: Rc::default(),
            making_network: Rc::default(),
            on_host,
            paths: Rc::new(Paths::of(me.as_ref(), sees)),
        }
    }

    async fn start(&self, order: &Order, progress: Progress<'_>) -> Result<Container, Failure> {
        let spec = &order.model().engine;
        let image = spec.image.as_deref().ok_or_else(|| {
            Failure::permanent("the docker driver needs `image`, which this model does not set")
        })?;
        if let Some(source) = missing_source(&spec.volumes).filter(|_| self.on_host) {
            return Err(Failure::permanent(self.tell_missing(&source)));
        }
        let stall = spec.container.pull_timeout.unwrap_or(STALL);
        let runs = pull(&self.docker, &self.registries, image, stall, progress).await?;
        progress("creating its container".into());
        let name = self.owner.name(order.engine());
        let mask = order.mask(&order.values(ANY, spec.port));
        self.create(order, &name, &mask).await?;
        if let Err(error) = self.docker.start_container(&name, None::<StartContainerOptions>).await {
            let message = mask.hide(&docker_message(&error));
            let permanent = ["executable file not found", "no such file", "could not select device driver"]
                .iter()
                .any(|known| message.contains(known));
            self.clear(&name).await;
            return Err(Failure {
                message: format!("its container could not be started: {message}"),
                permanent,
            });
        }
        let seen = self.docker.inspect_container(&name, None::<InspectContainerOptions>).await.ok();
        let endpoint = seen.as_ref().and_then(|seen| self.endpoint(seen, spec.port)).unwrap_or_default();
        let known = Known { name, endpoint, ram: order.ram, mask, image: Some(runs) };
        Ok(self.container(known, seen.as_ref()))
    }

    /// What to do about the source of a volume that is not on Docker's machine.
    fn tell_missing(&self, source: &str) -> String {
        let here = !self.on_host && std::path::Path::new(source).exists();
        let hint = if here {
            "it is in the agent's own container alone: engines see the host's paths; put the files on the host and \
             mount them into the agent at the same path"
        } else {
            "create it or correct `volumes`"
        };
        format!("a volume cannot be mounted: source {source} does not exist on the host; {hint}")
    }

    async fn create(&self, order: &Order, name: &str, mask: &Mask) -> Result<(), Failure> {
        let options = || CreateContainerOptionsBuilder::new().name(name).build();
        let place = match &self.network {
            Some(network) => Place::Shared(network.clone()),
            None => {
                let _one = self.making_network.lock().await;
                network::own(&self.docker, &self.owner).await
            }
        };
        let body = container(&self.owner, order, &place);
        let mut made = self.docker.create_container(Some(options()), body.clone()).await;
        if let Err(DockerError::DockerResponseServerError { status_code: 409, .. }) = &made {
            // The name is ours alone, so this is a leftover.
            self.clear(name).await;
            made = self.docker.create_container(Some(options()), body).await;
        }
        match made {
            Ok(_) => Ok(()),
            Err(error) => {
                let permanent =
                    matches!(error, DockerError::DockerResponseServerError { status_code: 400 | 404, .. });
                let told = docker_message(&error);
                let message = match missing_mount(&told) {
                    Some(path) => self.tell_missing(path),
                    None => format!("its container could not be made: {}", mask.hide(&told)),
                };
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

    /// Looks at a container, again where Docker does not answer; `None`: there is none.
    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, DockerError> {
        let mut backoff = Backoff::default();
        for again in (0..5).rev() {
            match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
                Ok(seen) => return Ok(Some(seen)),
                Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
                Err(error) if again == 0 => return Err(error),
                Err(_) => tokio::time::sleep(backoff.next_delay()).await,
            }
        }
        Ok(None)
    }

    fn container(&self, known: Known, seen: Option<&ContainerInspectResponse>) -> Container {
        let pid = seen.and_then(|seen| seen.state.as_ref()?.pid).and_then(|pid| i32::try_from(pid).ok());
        let leader = pid.filter(|pid| *pid > 0 && self.on_host).and_then(Leader::of);
        Container::new(self.docker.clone(), Rc::clone(&self.watch), known, leader)
    }

    /// Removes a container of an engine that nobody holds; later, where Docker does not answer.
    async fn clear(&self, name: &str) {
        if !remove(&self.docker, name, Some(GIVE_UP)).await {
            self.watch.condemn(name);
        }
    }

    /// What a running container was made of, whatever its image's name stands for by now.
    async fn image_of(&self, start: &StartEngine, seen: Option<&ContainerInspectResponse>) -> Option<String> {
        let found = self.docker.inspect_image(seen?.image.as_deref()?).await.ok()?;
        Some(name_of(start.model.engine.image.as_deref().unwrap_or_default(), &found))
    }

    pub(crate) fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Nothing of this host is on Docker any more.
    pub(crate) async fn leave(&self) {
        if self.network.is_none() {
            let _ = tokio::time::timeout(ANSWER, network::leave(&self.docker, &self.owner)).await;
        }
    }

    pub(crate) async fn answers(&self) -> bool {
        matches!(tokio::time::timeout(ANSWER, self.docker.ping()).await, Ok(Ok(_)))
    }

    /// This host's containers that do not run, and whose they were.
    pub(crate) async fn dead(&self) -> Vec<(String, EngineId)> {
        let mut filters = self.owner.filters();
        filters.insert("status".into(), ["created", "exited", "dead"].map(str::to_owned).to_vec());
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listed = self.docker.list_containers(Some(options)).await.unwrap_or_default();
        let named = listed.into_iter().filter_map(|found| Some((found.id?, engine_of(&found.labels?)?)));
        named.collect()
    }

    /// Whether a container is there and does not run, as of now.
    pub(crate) async fn is_dead(&self, id: &str) -> bool {
        let seen = self.docker.inspect_container(id, None::<InspectContainerOptions>).await.ok();
        seen.and_then(|seen| seen.state?.running) == Some(false)
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
            // Nothing is removed for want of an answer.
            let seen = match self.inspect(&id).await {
                Ok(seen) => seen,
                Err(error) => {
                    warn!(container = id, error = %Chain(&error), "cannot look at a container of an earlier run");
                    continue;
                }
            };
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
                    let image = self.image_of(&start, seen.as_ref()).await;
                    let config = seen.as_ref().and_then(|seen| seen.config.as_ref());
                    let given = config.and_then(|config| config.env.clone()).unwrap_or_default();
                    let mask = mask_of(&start.model.engine.env, &given);
                    let known = Known { name, endpoint, ram, mask, image };
                    found.push((start, Box::new(self.container(known, seen.as_ref()))));
                }
                None => self.clear(&id).await,
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
        async move { self.clear(&self.owner.name(engine)).await }.boxed_local()
    }
}
