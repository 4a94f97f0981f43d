//! One container that was started: watched, described, stopped.

use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_actors::Backoff;
use berth_telemetry::Chain;
use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::ContainerState;
use bollard::query_parameters::{
    InspectContainerOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StatsOptionsBuilder,
    StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures::{FutureExt, StreamExt};
use tracing::{debug, warn};

use crate::docker::ANSWER;
use crate::driver::{Doing, Instance, TOLD_LINES, starved};
use crate::logs::Log;
use crate::mask::Mask;
use crate::procs::Mark;
use crate::record::Leader;
use crate::tail::{Lines, Tail};
use crate::watch::Watch;

/// How long Docker may take to say that a container was killed for want of memory, where its events are not heard.
const OOM_WORD: Duration = Duration::from_millis(500);
/// The exit code of what was killed.
const KILLED: i64 = 128 + 9;
/// A death this soon after Docker went away is put down to that.
const BY_RESTART: Duration = Duration::from_secs(60);

/// What is known of a container when it is started or found.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) ram: Option<u64>,
    pub(crate) mask: Mask,
    pub(crate) image: Option<String>,
}

/// A container that was started.
#[derive(Debug)]
pub(crate) struct Container {
    docker: Docker,
    watch: Rc<Watch>,
    known: Known,
    /// Its first process, where this agent can see it: the truth while Docker does not answer.
    leader: Option<Leader>,
}

/// Kills and removes a container; tries again while Docker fails, since its memory counts as free afterwards. Whether
/// it is gone; without a `limit` it is.
pub(crate) async fn remove(docker: &Docker, name: &str, limit: Option<Duration>) -> bool {
    let began = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    loop {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match docker.remove_container(name, Some(options)).await {
            Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return true,
            // 409: being removed already.
            Err(error) => debug!(container = name, error = %Chain(&error), "removal failed; trying again"),
        }
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            warn!(container = name, "could not remove a container yet");
            return false;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Hides what a running container was `given` of what was `asked` for it: this agent's own variables may have changed
/// since. What else is there is the image's own, and no secret.
pub(crate) fn mask_of(asked: &[String], given: &[String]) -> Mask {
    let names: Vec<&str> = asked.iter().filter_map(|entry| entry.split('=').next()).collect();
    let ours =
        given.iter().filter_map(|entry| entry.split_once('=')).filter(|(name, _)| names.contains(name));
    Mask::of(ours.map(|(_, value)| value))
}

pub(crate) fn docker_message(error: &DockerError) -> String {
    match error {
        DockerError::DockerResponseServerError { message, .. } => message.clone(),
        other => Chain(other).to_string(),
    }
}

impl Container {
    pub(crate) fn new(docker: Docker, watch: Rc<Watch>, known: Known, leader: Option<Leader>) -> Self {
        watch.expect(&known.name);
        Self { docker, watch, known, leader }
    }

    async fn state(&self) -> Result<ContainerState, DockerError> {
        let seen = self.docker.inspect_container(&self.known.name, None::<InspectContainerOptions>).await?;
        Ok(seen.state.unwrap_or_default())
    }

    /// Whether its process is known to be gone, whatever Docker says.
    fn process_is_gone(&self) -> bool {
        self.leader.is_some_and(|leader| Leader::of(leader.pid) != Some(leader))
    }

    /// Waits for its death, through restarts of the Docker engine.
    async fn death(&self) {
        let name = &self.known.name;
        loop {
            let mut wait = self.docker.wait_container(name, None::<WaitContainerOptions>).boxed_local();
            tokio::select! {
                _ = wait.next() => {}
                () = self.watch.ended(name) => {}
            }
            match self.state().await {
                Ok(state) if state.running == Some(true) => {}
                Ok(_) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return,
                Err(_) if self.process_is_gone() => return,
                Err(error) => debug!(container = name, error = %Chain(&error), "Docker does not answer"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What Docker says of its end. That memory was the reason it tells by an event of its own, and in the container's
    /// state a moment after the end.
    async fn cause(&self) -> String {
        let began = Instant::now();
        loop {
            match self.state().await {
                Ok(state) => {
                    let unsure = state.exit_code == Some(KILLED) && !self.starved(&state);
                    if !unsure || self.known.ram.is_none() || began.elapsed() >= OOM_WORD {
                        return self.describe(&state);
                    }
                }
                Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
                    return "was removed by somebody else".into();
                }
                Err(error) if began.elapsed() >= OOM_WORD => {
                    return format!("ended while Docker does not answer: {}", docker_message(&error));
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn starved(&self, state: &ContainerState) -> bool {
        state.oom_killed == Some(true) || self.watch.is_starved(&self.known.name)
    }

    fn describe(&self, state: &ContainerState) -> String {
        let code = state.exit_code.unwrap_or(-1);
        if self.starved(state) {
            return match self.known.ram {
                Some(bytes) => starved(bytes),
                None => "was killed for want of memory".into(),
            };
        }
        let mut text = format!("ended with exit code {code}");
        if self.watch.was_away_within(BY_RESTART) {
            text.push_str(" when the Docker engine was stopped or restarted");
        } else if let Some(bytes) = self.known.ram.filter(|_| code == KILLED) {
            // Docker misses some of the kernel's kills.
            let mib = bytes >> 20;
            text.push_str(&format!(
                ", killed, and nobody says why: perhaps for more than its {mib} MiB of memory"
            ));
        }
        if let Some(error) = state.error.as_deref().filter(|error| !error.is_empty()) {
            text.push_str(&format!(": {}", self.known.mask.hide(error)));
        }
        text
    }

    async fn end(&self, grace: Duration) {
        let name = &self.known.name;
        if !grace.is_zero() {
            let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
            let docker = self.docker.clone().with_timeout(grace + Duration::from_secs(30));
            let options = StopContainerOptionsBuilder::new().t(seconds).build();
            if let Err(error) = docker.stop_container(name, Some(options)).await {
                debug!(container = name, error = %Chain(&error), "stopping failed; killing");
            }
        }
        // As long as it may hold memory, it is not gone.
        while !remove(&self.docker, name, Some(Duration::from_secs(2))).await {
            if self.process_is_gone() {
                self.watch.condemn(name);
                break;
            }
        }
        self.watch.forget(name);
    }
}

impl Instance for Container {
    fn endpoint(&self) -> &str {
        &self.known.endpoint
    }

    fn mark(&mut self) -> Doing<'_, Option<Mark>> {
        async {
            let name = &self.known.name;
            let seen = self.docker.inspect_container(name, None::<InspectContainerOptions>).await.ok();
            seen.and_then(|seen| seen.id).map(Mark::Container)
        }
        .boxed_local()
    }

    fn image(&self) -> Option<&str> {
        self.known.image.as_deref()
    }

    fn log(&self) -> Option<Log> {
        let (docker, name, mask) = (self.docker.clone(), self.known.name.clone(), self.known.mask.clone());
        Some(Log::Container { docker, name, mask })
    }

    fn memory(&mut self) -> Doing<'_, Option<u64>> {
        async move {
            let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
            let mut stats = self.docker.stats(&self.known.name, Some(options)).boxed_local();
            let stats = tokio::time::timeout(ANSWER, stats.next()).await.ok()??.ok()?;
            let memory = stats.memory_stats?;
            // Files that are cached go when somebody needs the room.
            let cached = memory.stats.as_ref().and_then(|stats| stats.get("inactive_file")).copied();
            memory.usage.map(|usage| usage.saturating_sub(cached.unwrap_or(0)))
        }
        .boxed_local()
    }

    fn exited(&mut self) -> Doing<'_, ()> {
        self.death().boxed_local()
    }

    fn how(&mut self) -> Doing<'_, String> {
        self.cause().boxed_local()
    }

    fn stop(&mut self, grace: Duration) -> Doing<'_, ()> {
        self.end(grace).boxed_local()
    }

    fn tail(&mut self) -> Doing<'_, Vec<String>> {
        async move {
            let count = TOLD_LINES.to_string();
            let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&count).build();
            let tail = Tail::new(self.known.mask.clone());
            let mut lines = Lines::new(tail.clone());
            let read = async {
                let mut logs = self.docker.logs(&self.known.name, Some(options)).boxed_local();
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
