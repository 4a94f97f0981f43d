//! A Docker engine that is not there when its agent starts: it is taken as soon as it answers.

use std::rc::Rc;
use std::time::Duration;

use berth_actors::Backoff;
use berth_wire::Driver;
use tracing::info;

use crate::docker::{DockerDriver, connect};
use crate::docker_spec::Owner;
use crate::leftovers;
use crate::shared::Shared;

/// How often a Docker engine that is not there is looked for.
const LOOK: Duration = Duration::from_secs(3);

/// Waits for a Docker engine, where one is configured, adopts what runs there for this host, and lets the leader know.
pub(crate) async fn driver(shared: &Rc<Shared>) -> DockerDriver {
    if !shared.config.host.drivers.contains(&Driver::Docker) {
        return std::future::pending().await;
    }
    let mut backoff = Backoff::new(Duration::from_millis(200), LOOK);
    let docker = loop {
        match connect(&shared.config.host).await {
            Ok(docker) => break docker,
            Err(_) => tokio::time::sleep(backoff.next_delay()).await,
        }
    };
    let owner = Owner { root: shared.bus.subjects.root().into(), host: shared.host.clone() };
    let found = DockerDriver::new(docker, owner, &shared.config.host).await;
    let driver = shared.docker.get_or_init(|| found).clone();
    // Before anything is started there: the memory of what runs is taken.
    leftovers::adopt(shared).await;
    shared.drivers.borrow_mut().push(Driver::Docker);
    shared.want_snapshot();
    shared.beat_now.notify_one();
    info!("Docker answers now: its models can run here");
    driver
}
