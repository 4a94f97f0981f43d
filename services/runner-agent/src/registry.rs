//! How to be let in by a registry: an entry of `[[host.registries]]`, else what `docker login` has left. What is found
//! goes to Docker with one pull, and nowhere else.

use std::path::Path;
use std::time::Duration;

use berth_config::{RegistryConfig, env};
use bollard::Docker;
use bollard::auth::DockerCredentials;
use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::mask::Mask;

/// A credential helper may ask a key ring, but nobody who must type.
const HELPER: Duration = Duration::from_secs(15);

/// The name of Docker Hub in Docker's own configuration.
const HUB: &str = "https://index.docker.io/v1/";

/// The registry that an image comes from, as `docker login` names it.
pub(crate) fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => match first {
            "docker.io" | "index.docker.io" => HUB,
            other => other,
        },
        _ => HUB,
    }
}

/// What there is to show a registry.
#[derive(Default)]
pub(crate) struct Pass {
    /// For Docker; `None`: nothing, as anybody.
    pub(crate) credentials: Option<DockerCredentials>,
    /// Hides them.
    pub(crate) mask: Mask,
    /// Why there is less than was configured.
    pub(crate) problem: Option<String>,
}

/// Looks for what lets into the registry of `image`.
pub(crate) async fn pass(registries: &[RegistryConfig], image: &str) -> Pass {
    let server = registry_of(image);
    let ours = registries.iter().find(|entry| registry_of(&format!("{}/x", entry.address)) == server);
    if let Some(entry) = ours {
        return match entry.password() {
            Ok(password) => credentials(server, &entry.user, password.expose()),
            Err(problem) => Pass { problem: Some(problem), ..Pass::default() },
        };
    }
    let asked = server.to_owned();
    let found = tokio::task::spawn_blocking(move || match env::docker_config() {
        Some(path) => docker_login(&path, &asked),
        None => Ok(None),
    });
    match tokio::time::timeout(HELPER, found).await {
        Ok(Ok(Ok(Some(DockerCredential::UsernamePassword(user, password))))) => {
            credentials(server, &user, &password)
        }
        Ok(Ok(Ok(Some(DockerCredential::IdentityToken(token))))) => Pass {
            mask: Mask::of([token.as_str()]),
            credentials: Some(DockerCredentials {
                serveraddress: Some(server.into()),
                identitytoken: Some(token),
                ..DockerCredentials::default()
            }),
            problem: None,
        },
        Ok(Ok(Ok(None))) | Ok(Err(_)) => Pass::default(),
        Ok(Ok(Err(problem))) => Pass { problem: Some(problem), ..Pass::default() },
        Err(_) => Pass {
            problem: Some(format!("Docker's credential helper did not answer within {} s", HELPER.as_secs())),
            ..Pass::default()
        },
    }
}

/// Of Docker's own `config.json`, with its credential helpers.
fn docker_login(path: &Path, server: &str) -> Result<Option<DockerCredential>, String> {
    let Ok(text) = std::fs::read(path) else { return Ok(None) };
    match docker_credential::get_credential_from_reader(text.as_slice(), server) {
        Ok(found) => Ok(Some(found)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // What a helper printed may be the secret itself.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            Err(format!("Docker's credential helper `{helper}` has nothing for {server}"))
        }
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn credentials(server: &str, user: &str, password: &str) -> Pass {
    let made = DockerCredentials {
        username: Some(user.into()),
        password: Some(password.into()),
        serveraddress: Some(server.into()),
        ..DockerCredentials::default()
    };
    Pass { credentials: Some(made), mask: Mask::of([password]), problem: None }
}

/// Docker reads credentials as URL-safe base64, and bollard writes the plain kind.
pub(crate) fn url_safe(docker: Docker) -> Docker {
    docker.with_request_modifier(|mut request| {
        if let Some(value) = request.headers_mut().get_mut("x-registry-auth") {
            let text = value.to_str().unwrap_or_default().replace('+', "-").replace('/', "_");
            if let Ok(safe) = text.parse() {
                *value = safe;
            }
        }
        request
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_read_off_an_image() {
        for (image, registry) in [
            ("ghcr.io/x/y:server", "ghcr.io"),
            ("localhost/y", "localhost"),
            ("127.0.0.1:5000/x/y@sha256:00", "127.0.0.1:5000"),
            ("vllm/vllm-openai:latest", HUB),
            ("docker.io/library/debian", HUB),
            ("debian:12", HUB),
        ] {
            assert_eq!(registry_of(image), registry);
        }
    }

    #[test]
    fn what_docker_login_has_left_is_found_and_a_helper_that_fails_is_named_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert_eq!(docker_login(&path, "r.example"), Ok(None));
        // me:pass
        let config = r#"{"auths": {"r.example": {"auth": "bWU6cGFzcw=="}}, "credHelpers": {"h.example": "of-nobody"}}"#;
        std::fs::write(&path, config).unwrap();
        let found = DockerCredential::UsernamePassword("me".into(), "pass".into());
        assert_eq!(docker_login(&path, "r.example"), Ok(Some(found)));
        assert_eq!(docker_login(&path, "other.example"), Ok(None));
        assert!(docker_login(&path, "h.example").unwrap_err().contains("credential helper"));
    }
}
