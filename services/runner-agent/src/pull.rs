//! Getting an engine's image, and saying how far that is.

use std::time::{Duration, Instant};

use berth_config::{RegistryConfig, show_duration};
use berth_telemetry::Chain;
use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt;
use tracing::{info, warn};

use crate::docker_spec::split_image;
use crate::driver::{Failure, Progress};
use crate::layers::Layers;
use crate::registry::{Pass, pass, registry_of};

/// A pull that has made no progress for so long is given up, where its model says nothing else.
pub(crate) const STALL: Duration = Duration::from_secs(180);

/// Has the image here; returns the digest or id of what there is under that name. A pull may make no progress for
/// `stall`.
pub(crate) async fn pull(
    docker: &Docker,
    registries: &[RegistryConfig],
    image: &str,
    stall: Duration,
    progress: Progress<'_>,
) -> Result<String, Failure> {
    let found = match inspect(docker, image).await? {
        Some(found) => found,
        None => {
            fetch(docker, registries, image, stall, progress).await?;
            inspect(docker, image).await?.ok_or_else(|| {
                Failure::passing(format!("image {image} was pulled and is not there: was it removed?"))
            })?
        }
    };
    let runs = name_of(image, &found);
    match pinned(image) {
        Some(digest) if !runs.ends_with(digest) => Err(Failure::permanent(format!(
            "image {image} is not what this host has under that name ({runs}); remove it there and try again"
        ))),
        _ => Ok(runs),
    }
}

async fn inspect(docker: &Docker, image: &str) -> Result<Option<ImageInspect>, Failure> {
    match docker.inspect_image(image).await {
        Ok(found) => Ok(Some(found)),
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(Failure::passing(format!("Docker does not answer: {}", Chain(&error)))),
    }
}

/// The digest that a reference is pinned to.
fn pinned(image: &str) -> Option<&str> {
    image.split_once('@').map(|(_, digest)| digest)
}

/// What runs under the name of `image`, for people: as registries know it, else by Docker's own id. An image that is
/// known by several digests is told by the one that is asked for.
pub(crate) fn name_of(image: &str, found: &ImageInspect) -> String {
    let digests = found.repo_digests.as_deref().unwrap_or_default();
    let (name, _) = split_image(image.split('@').next().unwrap_or(image));
    let asked = pinned(image);
    let digest = digests
        .iter()
        .find(|known| asked.is_some_and(|digest| known.ends_with(digest)))
        .or_else(|| digests.iter().find(|known| known.split('@').next() == Some(name)))
        .or(digests.first());
    digest.cloned().or_else(|| found.id.clone()).unwrap_or_default()
}

async fn fetch(
    docker: &Docker,
    registries: &[RegistryConfig],
    image: &str,
    stall: Duration,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    let began = Instant::now();
    info!(image, "pulling an image");
    progress("pulling its image".into());
    let Pass { credentials, mask, problem } = pass(registries, image).await;
    if let Some(problem) = &problem {
        warn!(image, problem, "asking the registry as anybody");
    }
    let (name, tag) = split_image(image);
    let options = CreateImageOptionsBuilder::new().from_image(name);
    let options = match tag {
        Some(tag) => options.tag(tag),
        None => options,
    };
    let known = credentials.is_some();
    let mut steps = docker.create_image(Some(options.build()), None, credentials);
    let mut layers = Layers::default();
    let refused = |why: String| {
        let why = mask.hide(&why);
        let mut message = format!("image {image} is not on this host and could not be pulled: {why}");
        if let Some(advice) = advice(&why, registry_of(image), known, problem.as_deref()) {
            message.push_str("; ");
            message.push_str(&advice);
        }
        Failure { message, permanent: !may_pass(&why) }
    };
    let mut moved = tokio::time::Instant::now();
    loop {
        match tokio::time::timeout_at(moved + stall, steps.next()).await {
            Ok(None) => {
                info!(image, took_ms = began.elapsed().as_millis(), "pulled an image");
                return Ok(());
            }
            Ok(Some(Ok(step))) => {
                if !is_another_try(&step) {
                    moved = tokio::time::Instant::now();
                }
                if layers.take(step, began.elapsed()) {
                    progress(layers.text());
                }
            }
            Ok(Some(Err(
                DockerError::DockerResponseServerError { message: why, .. }
                | DockerError::DockerStreamError { error: why },
            ))) => return Err(refused(why)),
            Ok(Some(Err(error))) => return Err(refused(Chain(&error).to_string())),
            Err(_) => {
                return Err(Failure::passing(format!(
                    "pulling image {image} made no progress for {} (pull_timeout): {}",
                    show_duration(stall),
                    layers.text()
                )));
            }
        }
    }
}

/// Docker counts the seconds to its next try at a layer: no progress.
fn is_another_try(step: &CreateImageInfo) -> bool {
    step.status.as_deref().is_some_and(|status| status.starts_with("Retrying"))
}

const FULL: &str = "no space left on device";

fn holds(text: &str, words: &[&str]) -> bool {
    let text = text.to_ascii_lowercase();
    words.iter().any(|word| text.contains(word))
}

/// Whether the same pull may go well in a while, without anybody doing anything.
fn may_pass(why: &str) -> bool {
    holds(
        why,
        &[
            "timeout",
            "timed out",
            "deadline exceeded",
            "eof",
            "connection reset",
            "connection closed",
            "temporary failure",
            "toomanyrequests",
            "too many requests",
            "internal server error",
            "bad gateway",
            "service unavailable",
            "error trying to connect",
            "context canceled",
        ],
    ) && !holds(why, &[FULL])
}

/// What to do about it, where that is known.
fn advice(why: &str, registry: &str, known: bool, problem: Option<&str>) -> Option<String> {
    if holds(why, &[FULL]) {
        return Some("free some space where Docker keeps its images (`docker system df`)".into());
    }
    if !holds(why, &["unauthorized", "denied", "no basic auth", "authentication required"]) {
        return None;
    }
    Some(match (problem, known) {
        (Some(problem), _) => problem.to_owned(),
        (None, true) => {
            format!(
                "what this host knows of {registry} does not let it in: correct [[host.registries]], or log in anew"
            )
        }
        (None, false) => format!(
            "if the image is there, let this host into {registry}: `docker login` as the agent's user, or an entry of \
             [[host.registries]]"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, digests: &[&str]) -> ImageInspect {
        ImageInspect {
            id: Some(id.into()),
            repo_digests: Some(digests.iter().map(|digest| (*digest).to_owned()).collect()),
            ..ImageInspect::default()
        }
    }

    #[test]
    fn what_runs_is_named_by_the_digest_of_its_own_name() {
        let found = image("sha256:id", &["a.example/x@sha256:1", "b.example/x@sha256:2"]);
        assert_eq!(name_of("b.example/x:tag", &found), "b.example/x@sha256:2");
        assert_eq!(name_of("b.example/x:tag@sha256:1", &found), "a.example/x@sha256:1");
        assert_eq!(name_of("c.example/x", &found), "a.example/x@sha256:1");
        assert_eq!(name_of("local:1", &image("sha256:id", &[])), "sha256:id");
    }

    #[test]
    fn only_what_may_pass_by_itself_is_tried_again() {
        for (why, passes) in [
            ("Get https://r/v2/: net/http: TLS handshake timeout", true),
            ("toomanyrequests: You have reached your pull rate limit", true),
            ("received unexpected HTTP status: 503 Service Unavailable", true),
            ("manifest for r/x:1 not found: manifest unknown", false),
            ("Head https://r/v2/x/manifests/1: no basic auth credentials", false),
            ("write /var/lib/docker/tmp/x: no space left on device", false),
        ] {
            assert_eq!(may_pass(why), passes, "{why}");
        }
        assert!(advice("write /x: no space left on device", "r", true, None).unwrap().contains("system df"));
        let denied =
            |known, problem| advice("unauthorized: authentication required", "r", known, problem).unwrap();
        assert!(denied(false, None).contains("docker login"));
        assert!(denied(true, None).contains("does not let it in"));
        assert_eq!(denied(false, Some("REG_PASSWORD is not set")), "REG_PASSWORD is not set");
        assert_eq!(advice("manifest unknown", "r", false, None), None);
    }
}
