//! By which names a gateway that asks for no key may be called. A page whose own name is made to lead to this machine (DNS
//! rebinding) is of the same site to a browser, which shows it all; but it cannot choose another name to call.

use std::net::IpAddr;
use std::sync::LazyLock;

use actix_web::http::header::{HOST, HeaderMap};
use actix_web::http::uri::Authority;
use berth_config::GatewayConfig;
use berth_wire::{ApiError, ErrorKind};

static MACHINE: LazyLock<String> = LazyLock::new(|| berth_config::env::machine().to_ascii_lowercase());

/// Refuses a name that could be anybody's. A gateway that is open to other machines has names that it does not know.
pub(crate) fn check(config: &GatewayConfig, headers: &HeaderMap) -> Result<(), ApiError> {
    // Browsers always send one.
    let Some(host) = headers.get(HOST).filter(|_| config.exposed().is_none()) else { return Ok(()) };
    let name = host.to_str().ok().and_then(|text| text.trim().parse::<Authority>().ok());
    if name.as_ref().is_some_and(|name| is_ours(name.host(), &config.hosts, &MACHINE)) {
        return Ok(());
    }
    let shown: String = name.iter().flat_map(|name| name.host().chars()).take(253).collect();
    let message = format!(
        "this gateway asks for no API key and is not known by the name `{shown}`, which may be a trick of a page in a \
         browser: call it by its address or as localhost, write hosts = [\"{shown}\"] under [gateway], or make a key with \
         `berth key create NAME` and send it"
    );
    Err(ApiError::new(ErrorKind::Forbidden, "host_not_known", message).param("host"))
}

/// Whether only this machine, its own networks or its configuration can have said what the name stands for.
fn is_ours(name: &str, hosts: &[String], machine: &str) -> bool {
    let name = name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    let local = |of: &str| name.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if name.is_empty() {
        return false;
    }
    name.parse::<IpAddr>().is_ok()
        // One label is a container's, or a machine's of the same network; of the public it could be only a top-level domain.
        || !name.contains('.')
        || local("localhost")
        // What containers call their own machine.
        || matches!(name.as_str(), "host.docker.internal" | "gateway.docker.internal" | "host.containers.internal")
        || (!machine.is_empty() && (name == machine || name.strip_suffix(".local") == Some(machine)))
        || hosts.iter().any(|host| host.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn a_name_is_ours_if_nobody_elsewhere_can_have_given_it() {
        let ours = |name: &str| is_ours(name, &["llm.example.org".into()], "box");
        for name in [
            "127.0.0.1",
            "[::1]",
            "192.168.1.5",
            "localhost",
            "Localhost.",
            "a.localhost",
            "box",
            "box.local",
            "gateway",
            "host.docker.internal",
            "LLM.example.org",
        ] {
            assert!(ours(name), "{name}");
        }
        for name in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost.x",
            "a.llm.example.org",
            "",
        ] {
            assert!(!ours(name), "{name}");
        }
        assert!(is_ours("box.lan", &[], "box.lan") && !is_ours("other.local", &[], ""));
    }

    #[test]
    fn a_port_is_passed_over_and_what_is_no_name_is_refused() {
        let config = GatewayConfig::default();
        let told = |host: &'static str| {
            check(&config, &[(HOST, HeaderValue::from_static(host))].into_iter().collect())
        };
        assert!(told("127.0.0.1:8421").is_ok() && told("[::1]:8421").is_ok() && told("localhost").is_ok());
        assert!(told("evil.example:8421").unwrap_err().message.contains("hosts = [\"evil.example\"]"));
        assert!(told("a b").is_err());
        assert!(check(&config, &HeaderMap::new()).is_ok());
        let open = GatewayConfig { listen: vec!["0.0.0.0:8421".parse().unwrap()], ..config.clone() };
        assert!(
            check(&open, &[(HOST, HeaderValue::from_static("evil.example"))].into_iter().collect()).is_ok()
        );
    }
}
