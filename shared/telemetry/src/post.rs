//! Posts to servers outside the fleet, over TLS where their address says https.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

/// Of an answer, no more than this is read.
const ANSWER: usize = 64 * 1024;
const CONNECT: Duration = Duration::from_secs(5);
/// Above this an idle connection may be closed by its server under a request.
const IDLE: Duration = Duration::from_secs(3);

/// Why a post was not answered. It does not name the address, which may hold a secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PostError {
    /// The file of certificates.
    #[error("cannot use the certificates in {}: {why}; name a PEM file", path.display())]
    Authority {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// No connection, or it broke.
    #[error("it cannot be reached")]
    Unreachable(#[from] hyper_util::client::legacy::Error),
    /// The answer broke off, or is too long.
    #[error("its answer cannot be read")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came in time.
    #[error("it does not answer in time")]
    TimedOut,
}

/// A client for posts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Poster(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Poster {
    /// Trusts the authorities in the file `ca`, else those that the system trusts.
    ///
    /// # Errors
    /// When the file has no certificate.
    pub fn new(ca: Option<&Path>) -> Result<Self, PostError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match ca {
            Some(path) => builder.with_root_certificates(authorities(path)?),
            // Without any, http is spoken all the same.
            None => match builder.clone().with_native_roots() {
                Ok(builder) => builder,
                Err(_) => builder.with_root_certificates(RootCertStore::empty()),
            },
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(builder.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends it and reads the answer, whatever its status.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub async fn send(&self, request: Request<Bytes>, limit: Duration) -> Result<Response<Bytes>, PostError> {
        let answered = async {
            let (head, body) = self.0.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER).collect().await.map_err(PostError::Answer)?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(limit, answered).await.map_err(|_| PostError::TimedOut)?
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, PostError> {
    let wrong = |why: String| PostError::Authority { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is none".into()));
    }
    Ok(roots)
}
