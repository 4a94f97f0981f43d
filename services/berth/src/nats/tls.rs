//! An authority of the fleet's own, and the server's certificate.

use std::path::Path;

use berth_bus::server::write_private;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::exit::Failure;

fn made<T>(result: Result<T, rcgen::Error>) -> Result<T, Failure> {
    result.map_err(|error| {
        Failure::Input(format!("cannot make a certificate: {error}; --tls takes a DNS name or an IP address"))
    })
}

/// The same for the certificate and for what it signs.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Berth fleet");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Makes both.
pub(super) fn make(folder: &Path, names: &[String]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|source| Failure::File { path: folder.to_owned(), source })?;
    let key = made(KeyPair::generate())?;
    let certificate = made(authority().self_signed(&key))?;
    write_private(&folder.join("ca.key"), &key.serialize_pem())?;
    write(&folder.join("ca.pem"), &certificate.pem())?;
    sign(folder, names, key)
}

/// Makes a new one for the server, signed by the authority that is there.
pub(super) fn renew(folder: &Path, names: &[String]) -> Result<(), Failure> {
    let path = folder.join("ca.key");
    let text = std::fs::read_to_string(&path).map_err(|source| Failure::File { path, source })?;
    sign(folder, names, made(KeyPair::from_pem(&text))?)
}

fn sign(folder: &Path, names: &[String], authority_key: KeyPair) -> Result<(), Failure> {
    let key = made(KeyPair::generate())?;
    let mut params = made(CertificateParams::new(names.to_vec()))?;
    params.distinguished_name = named("Berth nats-server");
    // Servers of a cluster show it to each other as well.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = made(params.signed_by(&key, &Issuer::new(authority(), authority_key)))?;
    write_private(&folder.join("server.key"), &key.serialize_pem())?;
    write(&folder.join("server.pem"), &certificate.pem())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|source| Failure::File { path: path.to_owned(), source })
}
