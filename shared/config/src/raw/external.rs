//! `[[external]]` as written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::external::{self, ExternalKind};
use crate::model::MOST;
use crate::schema;
use crate::spanned::Spanned;
use crate::value::{Span, Words};

/// Servers that run already and that Berth did not start ([external.md](external.md)). What they list is in the catalog too.
/// `berth add URL` writes such an entry.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawExternal {
    /// What it is called in logs and errors.
    #[schemars(extend("x-default" = "its kind"))]
    pub(crate) name: Option<Spanned<String>>,
    /// Its address, with or without `/v1`; `http://` alone.
    pub(crate) url: Spanned<String>,
    /// Which server it is; `"openai"` is anything that speaks OpenAI's HTTP.
    #[schemars(default, schema_with = "schema::external_kind", extend("default" = ExternalKind::default().as_str()))]
    pub(crate) kind: Option<Spanned<ExternalKind>>,
    /// Name of the agent's variable that holds its key.
    pub(crate) key_env: Option<Spanned<String>>,
    /// File on the agent's machine that holds its key alone.
    pub(crate) key_file: Option<PathBuf>,
    /// Requests for each of its models that it takes at once.
    #[schemars(range(min = 1, max = MOST), extend("x-default" = external::default_concurrency()))]
    pub(crate) concurrency: Option<Spanned<u32>>,
    /// Of its models only these, by its own names, with `*` for any characters.
    #[schemars(extend("x-default" = "all"))]
    pub(crate) models: Option<Spanned<Words>>,
    /// Names for clients to use instead of the server's: `{ "server's" = "clients'" }`.
    #[serde(default)]
    pub(crate) rename: BTreeMap<String, Spanned<String>>,
    /// More names for clients to use: `{ "alias" = "name" }`, by either of its names.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(crate) aliases: BTreeMap<Spanned<String>, String>,
    /// Stands before every name that `rename` does not give.
    pub(crate) prefix: Option<Spanned<String>>,
    /// The routes that it serves; others get 501.
    #[schemars(default, schema_with = "schema::routes", extend("x-default" = "those of its kind"))]
    pub(crate) routes: Option<Spanned<Words>>,
    /// How long it may take to load a model.
    #[schemars(extend("default" = schema::span(external::START_TIMEOUT), "x-least" = "1s"))]
    pub(crate) start_timeout: Option<Spanned<Span>>,
    /// Only agents of hosts that have all of these use it.
    #[serde(default)]
    pub(crate) labels: Words,
}
