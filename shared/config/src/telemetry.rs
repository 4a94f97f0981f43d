//! `[telemetry]`: where traces go, and how many of them.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::env;
use crate::problem::Findings;
use crate::resolve::authority;
use crate::spanned::Spanned;

/// All of a million.
const ALL: u32 = 1_000_000;

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Where spans are posted, as OTLP; `None`: there are none.
    pub traces_url: Option<String>,
    /// Of a million traces that begin here, so many are recorded. A client's own decision goes before it.
    pub per_million: u32,
    /// `service.name` instead of `berth-` and the role; in a process of several roles each adds its own.
    pub service: Option<String>,
    /// Several roles run in this process.
    pub several_roles: bool,
    /// Certificate of the authority that an https collector is checked against; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { traces_url: None, per_million: ALL, service: None, several_roles: false, ca: None }
    }
}

/// Traces of requests ([traces.md](traces.md)).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTelemetry {
    /// The collector that they are sent to, as OTLP over HTTP; without it there are none.
    #[schemars(extend("x-env" = "OTEL_EXPORTER_OTLP_ENDPOINT"))]
    otlp: Option<Spanned<String>>,
    /// The share of the traces that begin here that is recorded, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 1.0, "x-env" = "OTEL_TRACES_SAMPLER_ARG"))]
    traces: Option<Spanned<f64>>,
    /// The certificate that an https collector's is checked against, instead of those that the system trusts.
    #[schemars(extend("x-env" = "OTEL_EXPORTER_OTLP_CERTIFICATE"))]
    ca: Option<Spanned<PathBuf>>,
}

pub(crate) fn resolve(raw: &RawTelemetry, base: &Path, findings: &mut Findings<'_>) -> TelemetryConfig {
    let default = TelemetryConfig::default();
    let traces_url = raw.otlp.as_ref().map(|url| {
        if let Some(why) = web_address(url.get_ref()) {
            // It may hold a secret, so it is not quoted.
            findings.add_hidden(url.span(), why, "write it as in otlp = \"http://127.0.0.1:4318\"");
        }
        of_traces(url.get_ref())
    });
    let per_million = raw.traces.as_ref().map_or(default.per_million, |share| {
        parts(*share.get_ref()).unwrap_or_else(|| {
            findings.add(share.span(), "traces is a share, from 0 to 1", "as in traces = 0.1 for one of ten");
            default.per_million
        })
    });
    let ca = raw.ca.as_ref().map(|path| authority(path, base, findings));
    TelemetryConfig { traces_url, per_million, ca, ..default }
}

impl TelemetryConfig {
    /// Puts OpenTelemetry's own variables over what the file says.
    ///
    /// # Errors
    /// When one of them holds what cannot be used.
    pub(crate) fn apply_environment(&mut self) -> Result<(), String> {
        for (name, whole) in
            [("OTEL_EXPORTER_OTLP_ENDPOINT", false), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", true)]
        {
            let Some(url) = env::var(name) else { continue };
            if let Some(why) = web_address(&url) {
                return Err(format!("{name}: {why}; write it as in http://127.0.0.1:4318"));
            }
            self.traces_url = Some(if whole { url } else { of_traces(&url) });
        }
        match env::var("OTEL_TRACES_SAMPLER").as_deref() {
            Some("always_on" | "parentbased_always_on") => self.per_million = ALL,
            Some("always_off" | "parentbased_always_off") => self.per_million = 0,
            None | Some("traceidratio" | "parentbased_traceidratio") => {
                if let Some(share) = env::var("OTEL_TRACES_SAMPLER_ARG") {
                    self.per_million = share.trim().parse().ok().and_then(parts).ok_or_else(|| {
                        format!("OTEL_TRACES_SAMPLER_ARG: `{share}` is no share from 0 to 1, as 0.1 is")
                    })?;
                }
            }
            // One of another program's.
            Some(_) => {}
        }
        self.service = env::var("OTEL_SERVICE_NAME").or(self.service.take());
        self.ca = env::var("OTEL_EXPORTER_OTLP_CERTIFICATE").map(PathBuf::from).or(self.ca.take());
        let none = env::var("OTEL_TRACES_EXPORTER").is_some_and(|name| name == "none");
        if none || env::var("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true")) {
            self.traces_url = None;
        }
        Ok(())
    }
}

/// Where a collector takes spans.
fn of_traces(base: &str) -> String {
    format!("{}/v1/traces", base.trim().trim_end_matches('/'))
}

fn parts(share: f64) -> Option<u32> {
    // From 0 to a million, so nothing is cut off.
    (0.0..=1.0).contains(&share).then(|| (share * f64::from(ALL)).round() as u32)
}

/// What is wrong with the address of a server that is told something, if anything is.
pub(crate) fn web_address(url: &str) -> Option<&'static str> {
    match url.trim().split_once("://") {
        Some(("http" | "https", rest)) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            Some("a password does not belong into an address")
        }
        Some(("http" | "https", rest))
            if !rest.is_empty() && !rest.starts_with(['/', ':']) && !rest.contains(char::is_whitespace) =>
        {
            None
        }
        _ => Some("this is no address that begins with http:// or https://"),
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;

    fn read(text: &str) -> Result<Config, String> {
        Config::parse(text, "berth.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn traces_are_off_until_a_collector_is_named() {
        assert_eq!(read("").unwrap().telemetry.traces_url, None);
        let telemetry =
            read("[telemetry]\notlp = \"http://collector:4318/\"\ntraces = 0.1\n").unwrap().telemetry;
        assert_eq!(telemetry.traces_url.as_deref(), Some("http://collector:4318/v1/traces"));
        assert_eq!(telemetry.per_million, 100_000);
    }

    #[test]
    fn what_is_no_collector_is_said_at_its_line_without_its_secret() {
        for wrong in ["collector:4318", "grpc://c:4317", "http://", "http://u:hidden@c:4318"] {
            let error = read(&format!("[telemetry]\notlp = \"{wrong}\"\n")).unwrap_err();
            assert!(error.contains("otlp") && error.contains(":2:") && !error.contains("hidden"), "{error}");
        }
        assert!(read("[telemetry]\ntraces = 10\n").unwrap_err().contains("from 0 to 1"));
        assert!(read("[telemetry]\nca = \"/no/such.pem\"\n").unwrap_err().contains("/no/such.pem"));
    }
}
