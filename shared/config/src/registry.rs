//! `[[host.registries]]`: what lets a host into image registries. The password itself stands nowhere in the file, and is
//! read when it is needed: another host may share the file without having it.

use std::path::{Path, PathBuf};

use crate::spanned::Spanned;

use crate::env;
use crate::problem::Findings;
use crate::raw::RawRegistry;
use crate::resolve::below;
use crate::secret::Secret;

/// What lets into one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Its address as images name it, as in `ghcr.io`.
    pub address: String,
    /// The user.
    pub user: String,
    /// The variable of the agent's environment that holds the password.
    pub password_env: Option<String>,
    /// The file that holds it.
    pub password_file: Option<PathBuf>,
}

impl RegistryConfig {
    /// The password as it is now.
    ///
    /// # Errors
    /// When it is not where the entry says; for a person.
    pub fn password(&self) -> Result<Secret, String> {
        let address = &self.address;
        if let Some(name) = &self.password_env {
            return env::var(name).map(Secret::new).ok_or_else(|| {
                format!("the password for {address} is missing: set {name} in the agent's environment")
            });
        }
        let path = self.password_file.clone().unwrap_or_default();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Secret::new(text.trim())),
            Err(error) => {
                Err(format!("the password for {address} cannot be read from {}: {error}", path.display()))
            }
        }
    }
}

/// Builds the entries; what is wrong goes to `findings`.
pub(crate) fn resolve(raw: &[RawRegistry], base: &Path, findings: &mut Findings<'_>) -> Vec<RegistryConfig> {
    for (n, entry) in raw.iter().enumerate() {
        let earlier = raw.iter().take(n);
        if earlier.map(|other| other.address.get_ref()).any(|other| other == entry.address.get_ref()) {
            findings.add(
                entry.address.span(),
                format!("registry `{}` has an entry already", entry.address.get_ref()),
                "a host shows a registry one user; remove one of the two",
            );
        }
    }
    raw.iter().map(|raw| entry(raw, base, findings)).collect()
}

fn entry(raw: &RawRegistry, base: &Path, findings: &mut Findings<'_>) -> RegistryConfig {
    let address = raw.address.get_ref();
    if address.is_empty() || address.contains(|c: char| c == '/' || c == '@' || c.is_whitespace()) {
        findings.add(
            raw.address.span(),
            "this is no address of a registry",
            "write what images begin with, without a path, as in \"ghcr.io\" or \"registry.example:5000\"",
        );
    }
    if raw.user.get_ref().is_empty() {
        findings.add(raw.user.span(), "a user is needed", "registries that take a token alone take any name");
    }
    if raw.password_env.is_some() == raw.password_file.is_some() {
        findings.add(
            raw.address.span(),
            "the password comes from one place: a variable or a file",
            "write password_env = \"NAME\", or password_file = \"/run/secrets/registry\"",
        );
    }
    if let Some(name) = raw.password_env.as_ref().filter(|name| !is_variable(name)) {
        // It may be the password itself.
        findings.add_hidden(
            name.span(),
            "this is no name of an environment variable",
            "the password must not stand here: write the name of the variable that holds it",
        );
    }
    RegistryConfig {
        address: address.clone(),
        user: raw.user.get_ref().clone(),
        password_env: raw.password_env.as_ref().map(|name| name.get_ref().clone()),
        password_file: raw.password_file.as_ref().map(|path| below(base, path)),
    }
}

fn is_variable(name: &Spanned<String>) -> bool {
    let name = name.get_ref();
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
