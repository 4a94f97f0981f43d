//! The roles of one process: each on an actix arbiter, which is a thread with a runtime of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_rt::Arbiter;
use berth_bus::BusOptions;
use berth_config::Config;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::exit::Failure;
use crate::role::Role;

/// One role that was started.
struct Member {
    role: Role,
    shutdown: CancellationToken,
    ended: CancellationToken,
}

/// All of them.
pub(super) struct Crew {
    members: Vec<Member>,
    ends: mpsc::Receiver<(Role, Result<(), Failure>)>,
    tell_end: mpsc::Sender<(Role, Result<(), Failure>)>,
}

impl Default for Crew {
    fn default() -> Self {
        let (tell_end, ends) = mpsc::channel(8);
        Self { members: Vec::new(), ends, tell_end }
    }
}

impl Crew {
    /// Starts a role on a thread of its own.
    pub(super) fn start(
        &mut self,
        role: Role,
        config: &Arc<Config>,
        options: &BusOptions,
        started: impl FnOnce(Vec<SocketAddr>) + Send + 'static,
        metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    ) -> Result<(), Failure> {
        let failed = |source| Failure::System { what: "cannot start a thread", source };
        let arbiter = Arbiter::try_new().map_err(failed)?;
        let (config, options) = (Arc::clone(config), options.clone());
        let (shutdown, ended) = (CancellationToken::new(), CancellationToken::new());
        let (ending, tell_end, end) = (shutdown.clone(), self.tell_end.clone(), ended.clone());
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                // Also when the role panics.
                let _ended = end.drop_guard();
                let result = role.run(config, options, ending, started, metrics).await;
                if tell_end.send((role, result)).await.is_err() {
                    warn!(role = role.as_str(), "ended after its process was told to stop");
                }
            });
        });
        self.members.push(Member { role, shutdown, ended });
        Ok(())
    }

    /// Waits until a role ends that was not told to.
    pub(super) async fn first_end(&mut self) -> Failure {
        let broken =
            futures::future::select_all(self.members.iter().map(|member| Box::pin(member.ended.cancelled())));
        let (_, index, _) = broken.await;
        let role = self.members.get(index).map_or("role", |member| member.role.as_str());
        match self.ends.try_recv() {
            Ok((_, Err(failure))) => failure,
            Ok((role, Ok(()))) => Failure::Role { role: role.as_str(), why: "ended by itself".into() },
            Err(_) => Failure::Role { role, why: "broke down; please report this, with its log".into() },
        }
    }

    /// Tells a role to stop and waits for it, up to a limit.
    pub(super) async fn stop(&mut self, role: Role, limit: Duration) {
        let Some(member) = self.members.iter().find(|member| member.role == role) else { return };
        member.shutdown.cancel();
        if tokio::time::timeout(limit, member.ended.cancelled()).await.is_err() {
            warn!(role = role.as_str(), "did not stop in time");
        }
        while let Ok((role, result)) = self.ends.try_recv() {
            if let Err(failure) = result {
                error!(role = role.as_str(), %failure, "ended with an error");
            }
        }
    }
}
