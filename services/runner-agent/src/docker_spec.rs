//! An engine as a container: everything that is told to Docker, in one pure function.

use std::collections::HashMap;

use berth_wire::{EngineId, EngineKind, HostId, StartEngine, Ulimit};
use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, HostConfig, Mount, MountType, PortBinding,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use crate::driver::{Order, PIDS};
use crate::fill::fill_all;
use crate::network::Place;

const ROOT: &str = "berth.root";
const HOST: &str = "berth.host";
const ENGINE: &str = "berth.engine";
const MODEL: &str = "berth.model";
const SPEC: &str = "berth.spec";

/// Where an engine listens within its container.
pub(crate) const ANY: &str = "0.0.0.0";

/// vLLM's workers share tensors through `/dev/shm`, of which Docker gives 64 MiB.
const VLLM_SHM: i64 = 2 << 30;

/// Where an engine writes whose image is read-only.
const TMP: &str = "rw,nosuid,nodev,mode=1777";

fn signed(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

fn ulimit(limit: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(limit.name.clone()), soft: Some(limit.soft), hard: Some(limit.hard) }
}

/// Whose containers these are.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) root: String,
    pub(crate) host: HostId,
}

impl Owner {
    /// The container of an engine.
    pub(crate) fn name(&self, engine: impl std::fmt::Display) -> String {
        if self.root == berth_wire::Subjects::default().root() {
            format!("berth-{}-{engine}", self.host)
        } else {
            format!("berth-{}-{}-{engine}", self.root.replace('.', "_"), self.host)
        }
    }

    /// The network of its own.
    pub(crate) fn network(&self) -> String {
        self.name("engines")
    }

    /// What a network of its own says of itself.
    pub(crate) fn network_labels(&self) -> HashMap<String, String> {
        HashMap::from([(ROOT.to_owned(), self.root.clone()), (HOST.to_owned(), self.host.to_string())])
    }

    /// Filters that find this host's containers.
    pub(crate) fn filters(&self) -> HashMap<String, Vec<String>> {
        let labels = vec![format!("{ROOT}={}", self.root), format!("{HOST}={}", self.host)];
        HashMap::from([("label".to_owned(), labels)])
    }

    fn labels(&self, start: &StartEngine) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (ROOT.to_owned(), self.root.clone()),
            (HOST.to_owned(), self.host.to_string()),
            (ENGINE.to_owned(), start.engine.to_string()),
            (MODEL.to_owned(), start.model.id.to_string()),
        ]);
        // From it a restarted agent knows what it adopts; variables that are passed through have no value here.
        if let Ok(spec) = serde_json::to_string(start) {
            labels.insert(SPEC.to_owned(), spec);
        }
        labels
    }
}

/// What a container of ours was started from.
pub(crate) fn read_spec(labels: &HashMap<String, String>) -> Option<StartEngine> {
    serde_json::from_str(labels.get(SPEC)?).ok()
}

/// Whose container it is.
pub(crate) fn engine_of(labels: &HashMap<String, String>) -> Option<EngineId> {
    labels.get(ENGINE)?.parse().ok()
}

/// The name of the engine's port.
pub(crate) fn port_key(port: u16) -> String {
    format!("{port}/tcp")
}

/// `source:target[:ro]` with `~` and relative sources made absolute, as Docker wants them.
fn bind(volume: &str) -> String {
    match volume.split_once(':') {
        Some((source, rest)) if source.starts_with('~') || source.starts_with('.') => {
            let path = berth_config::env::expand_home(source);
            let path = std::path::absolute(&path).unwrap_or(path);
            format!("{}:{rest}", path.display())
        }
        _ => volume.to_owned(),
    }
}

/// A path of the host as a mount, which Docker refuses where there is no such path; of a bind it would make an empty
/// folder, as root. Volumes by name, and options that only binds have, are `None`.
fn mount(volume: &str) -> Option<Mount> {
    let volume = bind(volume);
    let (source, rest) = volume.split_once(':').filter(|(source, _)| source.starts_with('/'))?;
    let (target, read_only) = match rest.split_once(':') {
        None => (rest, false),
        Some((target, "rw")) => (target, false),
        Some((target, "ro")) => (target, true),
        Some(_) => return None,
    };
    Some(Mount {
        target: Some(target.to_owned()),
        source: Some(source.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        ..Mount::default()
    })
}

/// The path that Docker says is missing, if that is what it says.
pub(crate) fn missing_mount(message: &str) -> Option<&str> {
    let (_, path) = message.split_once("bind source path does not exist: ")?;
    Some(path.trim())
}

/// The first volume whose source is a path that is not there. Docker would make an empty folder of it, as root.
pub(crate) fn missing_source(volumes: &[String]) -> Option<String> {
    volumes.iter().find_map(|volume| {
        let volume = bind(volume);
        let (source, _) = volume.split_once(':')?;
        let missing =
            source.starts_with('/') && std::path::Path::new(source).try_exists().is_ok_and(|is| !is);
        missing.then(|| source.to_owned())
    })
}

/// The container to be made. On a shared network the engine is reached there; else its port is published on
/// loopback, on a free port that Docker chooses.
pub(crate) fn container(owner: &Owner, order: &Order, place: &Place) -> ContainerCreateBody {
    let spec = &order.model().engine;
    let values = order.values(ANY, spec.port);
    let args = order.args(&values);
    // ROCm reaches its GPUs by two device nodes; which of them it may use is said by name.
    let visible = (!order.amd.is_empty()).then(|| format!("ROCR_VISIBLE_DEVICES={}", order.amd.join(",")));
    let nodes = visible.is_some().then(|| {
        ["/dev/kfd", "/dev/dri"]
            .map(|node| DeviceMapping {
                path_on_host: Some(node.into()),
                path_in_container: Some(node.into()),
                cgroup_permissions: Some("rwm".into()),
            })
            .to_vec()
    });
    let env = order.environment(&values).into_iter().map(|(name, value)| format!("{name}={value}"));
    let port = port_key(spec.port);
    let published = place.shared().is_none().then(|| {
        let loopback = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some("0".into()) };
        HashMap::from([(port.clone(), Some(vec![loopback]))])
    });
    let gpus = (!order.gpus.is_empty()).then(|| {
        vec![DeviceRequest {
            driver: None,
            device_ids: Some(order.gpus.clone()),
            capabilities: Some(vec![vec!["gpu".into()]]),
            ..DeviceRequest::default()
        }]
    });
    let volumes = || spec.volumes.iter().chain(&order.volumes);
    let mounts: Vec<Mount> = volumes().filter_map(|volume| mount(volume)).collect();
    let binds = volumes().filter(|volume| mount(volume).is_none()).map(|v| bind(v));
    let binds: Vec<String> = binds.collect();
    let may = &spec.container;
    let ram = order.ram.or(may.ram).and_then(signed);
    ContainerCreateBody {
        image: spec.image.clone(),
        labels: Some(owner.labels(&order.start)),
        entrypoint: (!spec.command.is_empty()).then(|| fill_all(&spec.command, &values)),
        cmd: (!args.is_empty()).then_some(args),
        env: Some(visible.into_iter().chain(env).collect()),
        exposed_ports: Some(vec![port]),
        host_config: Some(HostConfig {
            binds: (!binds.is_empty()).then_some(binds),
            mounts: (!mounts.is_empty()).then_some(mounts),
            memory: ram,
            // The same as `memory`: no swap.
            memory_swap: ram,
            device_requests: gpus,
            devices: nodes,
            port_bindings: published,
            network_mode: place.id().map(str::to_owned),
            shm_size: may.shm.and_then(signed).or((spec.kind == EngineKind::Vllm).then_some(VLLM_SHM)),
            ipc_mode: may.ipc.clone(),
            ulimits: (!may.ulimits.is_empty()).then(|| may.ulimits.iter().map(ulimit).collect()),
            cpuset_cpus: may.cpus.clone(),
            readonly_rootfs: Some(may.read_only),
            tmpfs: may.read_only.then(|| HashMap::from([("/tmp".to_owned(), TMP.to_owned())])),
            pids_limit: Some(i64::from(may.pids.unwrap_or(PIDS))),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// An image's name without its tag, and the tag; a digest has none.
pub(crate) fn split_image(image: &str) -> (&str, Option<&str>) {
    if image.contains('@') {
        return (image, None);
    }
    // A colon before the last slash is a registry's port.
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        // Without a tag Docker would pull them all.
        _ => (image, Some("latest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest_one() {
        assert_eq!(split_image("ghcr.io/x/y:server"), ("ghcr.io/x/y", Some("server")));
        assert_eq!(split_image("localhost:5000/y"), ("localhost:5000/y", Some("latest")));
        assert_eq!(split_image("y@sha256:00"), ("y@sha256:00", None));
    }

    #[test]
    fn paths_are_mounts_and_what_only_binds_can_say_stays_a_bind() {
        let made = mount("/a:/b:ro").unwrap();
        assert_eq!((made.source.as_deref(), made.target.as_deref()), (Some("/a"), Some("/b")));
        assert_eq!((made.typ, made.read_only), (Some(MountType::BIND), Some(true)));
        assert!(mount("./a:/b").unwrap().source.unwrap().ends_with("/a"));
        assert_eq!(mount("models:/b"), None);
        assert_eq!(mount("/a:/b:ro,z"), None);
        let told = "invalid mount config for type \"bind\": bind source path does not exist: /m/x y";
        assert_eq!(missing_mount(told), Some("/m/x y"));
    }

    #[test]
    fn relative_sources_become_absolute_and_named_volumes_stay() {
        assert_eq!(bind("models:/models:ro"), "models:/models:ro");
        assert_eq!(bind("/a:/b"), "/a:/b");
        assert!(bind("./a:/b").starts_with('/'));
        assert!(bind("./a:/b").ends_with("a:/b"));
    }
}
