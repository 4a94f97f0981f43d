//! The Docker network that a host's engines are on: one that the agent's own container shares with them, else one of the
//! host's own, on which engines do not reach each other.

use std::collections::HashMap;

use berth_telemetry::Chain;
use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{ContainerInspectResponse, NetworkCreateRequest};
use bollard::query_parameters::{InspectContainerOptions, ListNetworksOptionsBuilder};
use tracing::{debug, info, warn};

use crate::docker_spec::Owner;

/// Whether containers of a bridge reach each other.
const TOGETHER: &str = "com.docker.network.bridge.enable_icc";

/// Where a container goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a network that this agent is on, too.
    Shared(String),
    /// On a network of the host's own; its port is published on loopback.
    Own(String),
    /// Where Docker puts it; its port is published on loopback.
    Default,
}

impl Place {
    /// What Docker is told.
    pub(crate) fn id(&self) -> Option<&str> {
        match self {
            Self::Shared(id) | Self::Own(id) => Some(id),
            Self::Default => None,
        }
    }

    /// The network that engines are reached on.
    pub(crate) fn shared(&self) -> Option<&str> {
        match self {
            Self::Shared(name) => Some(name),
            Self::Own(_) | Self::Default => None,
        }
    }
}

/// This agent's own container; `None`: it runs on the host, or in a container of another engine than the one it
/// commands.
pub(crate) async fn me(docker: &Docker) -> Option<ContainerInspectResponse> {
    if !std::path::Path::new("/.dockerenv").exists() {
        return None;
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    docker.inspect_container(hostname.trim(), None::<InspectContainerOptions>).await.ok()
}

/// The network to reach engines on: the configured one, else the one that this agent's own container is on; none when it
/// runs on the host.
pub(crate) fn shared(me: Option<&ContainerInspectResponse>, configured: Option<&str>) -> Option<String> {
    if let Some(network) = configured {
        return Some(network.to_owned());
    }
    let networks = me?.network_settings.as_ref()?.networks.as_ref()?;
    let mut names: Vec<String> =
        networks.keys().filter(|name| *name != "host" && *name != "none").cloned().collect();
    // Only networks that somebody made resolve names; they come first.
    names.sort_by_key(|name| name == "bridge");
    names.into_iter().next()
}

/// The networks of that name: Docker allows several, and then takes no container on any of them.
async fn named(docker: &Docker, name: &str) -> Result<Vec<String>, DockerError> {
    let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let found = docker.list_networks(Some(options)).await?;
    // The filter takes longer names, too.
    let exact = found.into_iter().filter(|network| network.name.as_deref() == Some(name));
    let mut ids: Vec<String> = exact.filter_map(|network| network.id).collect();
    ids.sort();
    Ok(ids)
}

/// The host's own network, made where there is none yet. Where Docker makes none, engines run on its default one. To be
/// asked by one engine at a time.
pub(crate) async fn own(docker: &Docker, owner: &Owner) -> Place {
    let name = owner.network();
    match named(docker, &name).await.map(|ids| ids.into_iter().next()) {
        Ok(Some(id)) => return Place::Own(id),
        Ok(None) => {}
        Err(error) => {
            debug!(error = %Chain(&error), "cannot look for the host's own network");
            return Place::Default;
        }
    }
    let make = async |options: Option<HashMap<String, String>>| {
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".into()),
            labels: Some(owner.network_labels()),
            options,
            ..NetworkCreateRequest::default()
        };
        docker.create_network(request).await
    };
    let apart = HashMap::from([(TOGETHER.to_owned(), "false".to_owned())]);
    let made = match make(Some(apart)).await {
        // A kernel without br_netfilter cannot keep them apart.
        Err(error) => {
            debug!(error = %Chain(&error), "cannot make a network whose containers are kept apart");
            make(None).await
        }
        made => made,
    };
    match made {
        Ok(made) => {
            // Another agent of this host's name may have made one, too: the first of them stays.
            let first = named(docker, &name).await.ok().and_then(|ids| ids.into_iter().next());
            let first = first.unwrap_or_else(|| made.id.clone());
            if first != made.id {
                let _ = docker.remove_network(&made.id).await;
            }
            info!(network = name, "made a network for this host's engines");
            Place::Own(first)
        }
        Err(error) => {
            warn!(error = %Chain(&error), "cannot make a network for this host's engines; they go on the default one");
            Place::Default
        }
    }
}

/// Removes the host's own network, unless somebody is on it.
pub(crate) async fn leave(docker: &Docker, owner: &Owner) {
    for id in named(docker, &owner.network()).await.unwrap_or_default() {
        if let Err(error) = docker.remove_network(&id).await {
            debug!(error = %Chain(&error), "the host's own network stays");
        }
    }
}
