//! The file's shape as a JSON Schema: what values of this crate's own types look like, and the words by which a field
//! says more of itself than JSON Schema has: `x-kind` (what people call its type), `x-default` (a default that depends on
//! something), `x-env` (the variable that sets it), `x-least` and `x-most`.

use std::borrow::Cow;
use std::time::Duration;

use berth_wire::{Class, Driver, EngineKind, Route, Scope};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::context::Keep;
use crate::raw::RawConfig;
use crate::secret::Secret;
use crate::sleep::Depth;
use crate::value::{OneOrMany, Size, Span, Ttl, Words};

/// The JSON Schema of a configuration file, for editors.
#[must_use]
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.root_schema_for::<RawConfig>().to_value();
    without_null(&mut schema);
    schema
}

/// TOML has no null: what may be left out is left out.
fn without_null(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(map) => {
            if map.get("default").is_some_and(Value::is_null) {
                map.remove("default");
            }
            for (key, value) in map.iter_mut() {
                match (key.as_str(), value) {
                    ("type", Value::Array(types)) => types.retain(|word| word != "null"),
                    ("enum", Value::Array(values)) => values.retain(|value| !value.is_null()),
                    ("anyOf", Value::Array(any)) => {
                        any.retain(|one| one.get("type").is_none_or(|word| word != "null"));
                        any.iter_mut().for_each(without_null);
                    }
                    (_, value) => without_null(value),
                }
            }
            if let Some(Value::Array(types)) = map.get("type")
                && let [one] = types.as_slice()
            {
                let one = one.clone();
                map.insert("type".into(), one);
            }
        }
        _ => {}
    }
}

/// A duration as the file writes it.
pub(crate) fn span(span: Duration) -> String {
    crate::show_duration(span)
}

/// A time to live as the file writes it.
pub(crate) fn ttl(ttl: Option<Duration>) -> String {
    ttl.map_or_else(|| "never".into(), span)
}

/// A size as the file writes it, in the largest unit that it is a whole number of.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fits = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// What `of` says of each kind of engine that a model may name.
pub(crate) fn by_engine<T: ToString>(of: impl Fn(EngineKind) -> Option<T>) -> String {
    let kinds =
        ENGINES.into_iter().filter_map(|kind| Some(format!("{} {}", kind.as_str(), of(kind)?.to_string())));
    kinds.collect::<Vec<_>>().join(", ")
}

const ENGINES: [EngineKind; 4] =
    [EngineKind::LlamaCpp, EngineKind::Vllm, EngineKind::Sim, EngineKind::Custom];

/// One of some words.
fn one_of<const N: usize>(words: [&str; N]) -> Schema {
    json_schema!({ "type": "string", "enum": words.to_vec() })
}

pub(crate) fn engine(_: &mut SchemaGenerator) -> Schema {
    one_of(ENGINES.map(EngineKind::as_str))
}

pub(crate) fn driver(_: &mut SchemaGenerator) -> Schema {
    one_of([Driver::Docker, Driver::Process].map(Driver::as_str))
}

pub(crate) fn drivers(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": driver(generator) })
}

pub(crate) fn scope(_: &mut SchemaGenerator) -> Schema {
    one_of([Scope::User, Scope::Admin].map(Scope::as_str))
}

pub(crate) fn class(_: &mut SchemaGenerator) -> Schema {
    one_of([Class::Interactive, Class::Standard, Class::Batch].map(Class::as_str))
}

pub(crate) fn external_kind(_: &mut SchemaGenerator) -> Schema {
    one_of(crate::ExternalKind::ALL.map(crate::ExternalKind::as_str))
}

pub(crate) fn ipc(_: &mut SchemaGenerator) -> Schema {
    one_of(crate::container::IPC)
}

pub(crate) fn routes(_: &mut SchemaGenerator) -> Schema {
    let routes = Route::ALL.map(Route::path).to_vec();
    json_schema!({
        "type": "array",
        "items": { "type": "string", "enum": routes },
        "x-kind": "list of [routes](http.md#routes)",
    })
}

/// TOML's own dates and times, which reach a JSON Schema as text.
pub(crate) fn day(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "x-kind": "date or time" })
}

/// Gives types the schemas that their readers amount to.
macro_rules! written {
    ($($type:ty => $name:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

written! {
    Span => "Duration", { "type": "string", "x-kind": "duration" };
    Ttl => "TimeToLive", { "type": "string", "x-kind": "duration or `\"never\"`" };
    Keep => "Keep", { "type": "string", "x-kind": "duration or `\"off\"`" };
    Size => "Size", { "type": "string", "x-kind": "size" };
    Secret => "Secret", { "type": "string", "x-kind": "secret" };
    Words => "Words", { "type": "array", "items": { "type": "string" } };
    OneOrMany => "OneOrMany", {
        "type": ["string", "array"], "items": { "type": "string" }, "x-kind": "text or list of text"
    };
    Depth => "Sleep", { "type": ["integer", "string"], "enum": [1, 2, "off"] };
}
