//! `bus.json` in the data directory: how other commands of this user reach the NATS and the gateway of a running `berth up`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use berth_bus::BusOptions;
use berth_bus::server::{NatsServer, write_private};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

const NAME: &str = "bus.json";

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    url: String,
    root: String,
    token_file: PathBuf,
    /// Where its gateway listens.
    #[serde(default)]
    gateway: Option<SocketAddr>,
    /// Of the `berth up` that wrote it.
    pid: u32,
}

/// The file while its `berth up` runs.
#[derive(Debug)]
pub(crate) struct BusFile {
    path: PathBuf,
}

impl BusFile {
    /// Says where NATS is, and the gateway. Readable by the owner alone, like the token.
    pub(crate) fn write(
        data_dir: &Path,
        server: &NatsServer,
        root: &str,
        gateway: Option<SocketAddr>,
    ) -> Result<Self, Failure> {
        let content = Content {
            url: server.url().into(),
            root: root.into(),
            token_file: server.token_file().into(),
            gateway,
            pid: std::process::id(),
        };
        let path = data_dir.join(NAME);
        let text =
            serde_json::to_string_pretty(&content).map_err(|error| Failure::Input(error.to_string()))?;
        write_private(&path, &text)?;
        Ok(Self { path })
    }

    fn content(data_dir: &Path) -> Result<Option<Content>, Failure> {
        let path = data_dir.join(NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Failure::File { path, source }),
        };
        let content = serde_json::from_str(&text)
            .map_err(|error| Failure::Input(format!("{} is damaged ({error}); remove it", path.display())))?;
        Ok(Some(content))
    }

    /// Where NATS is; `None` where no `berth up` has left word.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<BusOptions>, Failure> {
        let Some(content) = Self::content(data_dir)? else { return Ok(None) };
        let token = std::fs::read_to_string(&content.token_file)
            .map_err(|source| Failure::File { path: content.token_file.clone(), source })?;
        Ok(Some(BusOptions {
            urls: vec![content.url],
            root: content.root,
            token: Some(token.trim().into()),
            ..BusOptions::default()
        }))
    }

    /// Where its gateway listens.
    pub(crate) fn gateway(data_dir: &Path) -> Result<Option<SocketAddr>, Failure> {
        Ok(Self::content(data_dir)?.and_then(|content| content.gateway))
    }

    /// Removes it.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(self.path);
    }
}
