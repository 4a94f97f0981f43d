//! The JSON that Berth itself takes and gives, by name, for its OpenAPI document. Tests hold it against real answers.

use utoipa::openapi::schema::{
    ArrayBuilder, KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr};

/// One shape of JSON.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    fields: &'static [Field],
    /// Other fields may stand beside these.
    open: bool,
}

/// A field: its name, its kind, whether it is always there, what it is.
type Field = (&'static str, Kind, bool, &'static str);

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Texts,
    Whole,
    Number,
    Truth,
    /// Another shape.
    Is(&'static str),
    /// Several of another shape.
    Are(&'static str),
    /// An object of no certain shape.
    Object,
    Objects,
}

use Kind::{Are, Is, Number, Object, Objects, Text, Texts, Truth, Whole};

pub(crate) const ANYTHING: Shape = Shape { name: "Anything", fields: &[], open: true };
pub(crate) const ASKED: Shape = Shape {
    name: "Asked",
    fields: &[
        ("model", Text, true, "A model's name or alias"),
        ("stream", Truth, false, "Whether the answer is to come as events"),
    ],
    open: true,
};
pub(crate) const MODEL: Shape = Shape {
    name: "Model",
    fields: &[
        ("id", Text, true, "Its name"),
        ("object", Text, true, "`model`"),
        ("created", Whole, true, "Unix seconds since which this gateway serves it"),
        ("owned_by", Text, true, "`berth`"),
        ("parent", Text, false, "Of an adapter, its base"),
        ("aliases", Texts, true, "Other names that it goes by"),
        ("engine", Text, true, "The kind of its engine"),
        (
            "state",
            Text,
            true,
            "The state of its best engine: ready, sleeping, starting, stopped, ...; without one also failed or cannot_fit",
        ),
        ("error", Text, false, "Why it has failed or cannot fit"),
        ("context_length", Whole, false, "Tokens that it can look at"),
        ("concurrency", Whole, true, "Requests that one engine of it runs at a time"),
    ],
    open: false,
};
pub(crate) const MODELS: Shape = Shape {
    name: "Models",
    fields: &[("object", Text, true, "`list`"), ("data", Are("Model"), true, "By name")],
    open: false,
};
pub(crate) const LEASE_ASKED: Shape = Shape {
    name: "LeaseAsked",
    fields: &[
        ("sessionKey", Text, true, "The session, 1 to 256 bytes"),
        ("model", Text, true, "A model's name or alias"),
        (
            "ttlSeconds",
            Number,
            false,
            "How long it is to last, from 1 to [scheduler] lease_ceiling; 120 if not said",
        ),
        (
            "keepContext",
            Truth,
            false,
            "What the engine has read of the session is to outlast a stop of the engine; as it was if not said",
        ),
    ],
    open: false,
};
pub(crate) const LEASE: Shape = Shape {
    name: "Lease",
    fields: &[
        ("sessionKey", Text, true, "The session"),
        ("model", Text, true, "The model"),
        ("state", Text, true, "ready, loading or queued"),
        (
            "position",
            Whole,
            true,
            "Who goes before: requests for the model that wait and, while queued, models that have room before it",
        ),
        ("etaSeconds", Number, true, "Until the model is ready; null where nobody knows"),
        ("expiresAt", Text, true, "RFC 3339, by the scheduler's clock"),
        ("expiresInSeconds", Number, true, "Until it ends"),
        ("keepContext", Truth, true, "What the engine has read of the session outlasts a stop of the engine"),
    ],
    open: false,
};
pub(crate) const LEASES: Shape = Shape {
    name: "Leases",
    fields: &[
        ("leases", Are("Lease"), true, "By session"),
        ("total", Whole, true, "Also those that did not fit into the answer"),
    ],
    open: false,
};
pub(crate) const RELEASE_ASKED: Shape = Shape {
    name: "ReleaseAsked",
    fields: &[
        ("sessionKey", Text, true, "The session"),
        ("model", Text, false, "Only the lease on this model; all of the session's if not said"),
    ],
    open: false,
};
pub(crate) const RELEASED: Shape = Shape {
    name: "Released",
    fields: &[
        ("sessionKey", Text, true, "The session"),
        ("released", Texts, true, "Models it held a lease on"),
    ],
    open: false,
};
pub(crate) const HINT: Shape = Shape {
    name: "Hint",
    fields: &[
        ("sessionKey", Text, true, "The session"),
        ("model", Text, true, "The model that it will ask for"),
        ("inSeconds", Number, true, "When, from now; up to 86400"),
    ],
    open: false,
};
pub(crate) const JOB: Shape = Shape {
    name: "Job",
    fields: &[
        ("id", Text, true, "Its id"),
        ("object", Text, true, "`berth.job`"),
        ("status", Text, true, "queued, loading, running, completed, failed, cancelled or expired"),
        ("model", Text, true, "Its model"),
        ("route", Text, true, "Its route"),
        ("position", Whole, true, "Its place in the queue; null once it runs"),
        ("eta_s", Whole, true, "Seconds until it is expected to run; null where nobody knows"),
        ("submitted_at", Text, true, "RFC 3339"),
        ("began_at", Text, true, "RFC 3339, or null"),
        ("ended_at", Text, true, "RFC 3339, or null"),
        ("attempts", Whole, true, "How often an engine was given it"),
        ("host", Text, true, "Where it ran last, or null"),
        ("result", Object, true, "Where its answer is, with its status, type and size, or null"),
        ("usage", Object, true, "Tokens, as far as they are known"),
        ("error", Object, true, "Why it failed, or null"),
    ],
    open: false,
};
pub(crate) const MODEL_VIEWS: Shape =
    Shape { name: "ModelViews", fields: &[("models", Are("ModelView"), true, "By name")], open: false };
const MODEL_VIEW: Shape = Shape {
    name: "ModelView",
    fields: &[
        ("model", Text, true, "Its name"),
        ("aliases", Texts, true, "Other names for it"),
        ("engine", Text, true, "The kind of its engine"),
        ("state", Text, true, "ready, loading, sleeping, stopping, stopped, failed or cannot_fit"),
        ("hosts", Texts, true, "Hosts that have an engine of it; for scope admin"),
        ("engines", Texts, true, "Its engines; for scope admin"),
        ("pinned", Truth, true, "One engine is kept ready always"),
        ("memory", Whole, true, "Bytes that its configuration sets aside, or null"),
        ("estimated", Whole, true, "Bytes that it is estimated to take, or null"),
        ("measured", Whole, true, "Most bytes that it was measured to take, or null"),
        ("context", Whole, true, "Tokens that it can look at, or null"),
        ("concurrency", Whole, true, "Requests that one engine runs at a time"),
        ("waiting", Whole, true, "Jobs that wait for it"),
        ("running", Whole, true, "Jobs that run on it"),
        ("wait_s", Number, true, "What a job submitted now may expect to wait; null where nobody knows"),
        ("leases", Whole, true, "Sessions with a lease on it"),
        ("hints", Whole, true, "Sessions that gave a hint of it"),
        ("asked_for", Truth, true, "An operator asked for an engine that is not there yet"),
        ("error", Text, true, "Why it has no engine and gets none now, or null"),
        ("adapters", Objects, true, "Its LoRA adapters: model, aliases, and the engines that hold each"),
    ],
    open: true,
};
pub(crate) const JOB_VIEWS: Shape = Shape {
    name: "JobViews",
    fields: &[
        ("jobs", Are("JobView"), true, "Those that wait first"),
        ("total", Whole, true, "Also those that did not fit into the answer"),
    ],
    open: false,
};
const JOB_VIEW: Shape = Shape {
    name: "JobView",
    fields: &[
        ("job", Text, true, "Its id"),
        ("model", Text, true, "Its model"),
        ("running", Truth, true, "Whether it runs; else it waits"),
        ("position", Whole, true, "Jobs of its model that came before it and wait too; null where it runs"),
        ("class", Text, true, "interactive, standard or batch"),
        ("session", Text, true, "Its conversation, or null"),
        ("key", Text, true, "The name of its key, or null"),
        ("age_s", Number, true, "Since its gateway took it"),
        ("eta_s", Number, true, "Until it is expected to start; null where nobody knows"),
        ("why", Text, true, "Why it waits, for scope admin; or null"),
        ("engine", Text, true, "Where it runs, for scope admin; or null"),
        ("host", Text, true, "On which host, for scope admin; or null"),
        ("attempts", Whole, true, "How often an engine was given it"),
    ],
    open: true,
};
pub(crate) const EXPLAINED: Shape = Shape {
    name: "Explained",
    fields: &[
        ("now", Object, true, "A JobView with `model_waited_s` and `places`; null once it has ended"),
        ("story", Objects, true, "What was recorded of it; for scope admin"),
    ],
    open: false,
};
pub(crate) const LOAD_ASKED: Shape = Shape {
    name: "LoadAsked",
    fields: &[("model", Text, true, "A model's name or alias"), ("host", Text, false, "Only there")],
    open: false,
};
pub(crate) const UNLOAD_ASKED: Shape = Shape {
    name: "UnloadAsked",
    fields: &[
        ("model", Text, true, "A model's name or alias"),
        ("host", Text, false, "Only there"),
        ("force", Truth, false, "Also where it is pinned, leases keep it, jobs wait for it or run on it"),
    ],
    open: false,
};
pub(crate) const PIN_ASKED: Shape =
    Shape { name: "PinAsked", fields: &[("model", Text, true, "A model's name or alias")], open: false };
pub(crate) const DONE: Shape = Shape {
    name: "Done",
    fields: &[
        ("engines", Texts, true, "The engines that it is about"),
        ("already", Truth, true, "Nothing had to be done; the status is 200 then"),
    ],
    open: false,
};
pub(crate) const HINT_VIEWS: Shape =
    Shape { name: "HintViews", fields: &[("hints", Are("HintView"), true, "By model")], open: false };
const HINT_VIEW: Shape = Shape {
    name: "HintView",
    fields: &[
        ("session", Text, true, "Whose request it will be"),
        ("model", Text, true, "What it will ask for"),
        ("key", Text, true, "The name of the key it came with, or null"),
        ("due_s", Number, true, "Until then; nought: it is due"),
    ],
    open: false,
};
pub(crate) const WITHDRAWN: Shape = Shape {
    name: "Withdrawn",
    fields: &[("withdrawn", Texts, true, "Models whose hints were taken back")],
    open: false,
};
pub(crate) const HOSTS: Shape =
    Shape { name: "Hosts", fields: &[("hosts", Objects, true, "Each host's last heartbeat")], open: false };
pub(crate) const ENGINES: Shape =
    Shape { name: "Engines", fields: &[("engines", Objects, true, "Each engine")], open: false };
pub(crate) const FLEET: Shape = Shape {
    name: "Fleet",
    fields: &[
        ("leader", Object, true, "The scheduler that leads, or null"),
        ("hosts", Objects, true, "Each host's last heartbeat"),
        ("engines", Objects, true, "Each engine"),
    ],
    open: true,
};
pub(crate) const HEALTH: Shape = Shape {
    name: "Health",
    fields: &[("status", Text, true, "ok or stuck"), ("actors", Objects, true, "Each actor's signs of life")],
    open: false,
};
pub(crate) const ABOUT: Shape = Shape {
    name: "About",
    fields: &[
        ("service", Text, true, "`berth`"),
        ("version", Text, true, "Its version"),
        ("about", Text, true, "What it is"),
        ("paths", Object, true, "Where to go, and what for"),
    ],
    open: false,
};
pub(crate) const READY: Shape = Shape {
    name: "Ready",
    fields: &[
        ("ready", Truth, true, "Whether a request will be taken"),
        ("draining", Truth, true, "Whether this gateway ends"),
        ("components", Objects, true, "What it needs, part by part"),
    ],
    open: false,
};
pub(crate) const ERROR: Shape =
    Shape { name: "Error", fields: &[("error", Is("ErrorObject"), true, "What is wrong")], open: false };
const ERROR_OBJECT: Shape = Shape {
    name: "ErrorObject",
    fields: &[
        ("message", Text, true, "What happened and what to do"),
        ("type", Text, true, "OpenAI's type of error"),
        ("param", Text, true, "The field at fault, or null"),
        ("code", Text, true, "What it is for programs, as in model_not_found; or null"),
    ],
    open: false,
};
pub(crate) const ANTHROPIC_ERROR: Shape = Shape {
    name: "AnthropicError",
    fields: &[
        ("type", Text, true, "`error`"),
        ("error", Object, true, "`type` and `message`"),
        ("request_id", Text, false, "The request's id"),
    ],
    open: false,
};

/// Every shape.
pub(crate) const ALL: [Shape; 32] = [
    MODEL_VIEWS,
    MODEL_VIEW,
    JOB_VIEWS,
    JOB_VIEW,
    EXPLAINED,
    LOAD_ASKED,
    UNLOAD_ASKED,
    PIN_ASKED,
    DONE,
    HINT_VIEWS,
    HINT_VIEW,
    WITHDRAWN,
    HOSTS,
    ENGINES,
    ANYTHING,
    ASKED,
    MODEL,
    MODELS,
    LEASE_ASKED,
    LEASE,
    LEASES,
    RELEASE_ASKED,
    RELEASED,
    HINT,
    JOB,
    FLEET,
    ABOUT,
    HEALTH,
    READY,
    ERROR,
    ERROR_OBJECT,
    ANTHROPIC_ERROR,
];

/// The schema of a text.
pub(crate) fn text() -> Schema {
    of(Type::String).into()
}

fn of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

impl Kind {
    fn schema(self, about: &str, required: bool) -> RefOr<Schema> {
        // What is always there may be null where nothing is known.
        let nullable = required && about.contains("null");
        let plain = |kind: Type| {
            let object = match nullable {
                true => ObjectBuilder::new().schema_type(SchemaType::from_iter([kind, Type::Null])),
                false => of(kind),
            };
            object.description(Some(about))
        };
        match self {
            Text => plain(Type::String).into(),
            Whole => plain(Type::Integer).format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64))).into(),
            Number => plain(Type::Number).into(),
            Truth => plain(Type::Boolean).into(),
            Object => plain(Type::Object).into(),
            Texts => ArrayBuilder::new().items(of(Type::String)).description(Some(about)).into(),
            Objects => ArrayBuilder::new().items(of(Type::Object)).description(Some(about)).into(),
            Is(name) => Ref::from_schema_name(name).into(),
            Are(name) => {
                ArrayBuilder::new().items(Ref::from_schema_name(name)).description(Some(about)).into()
            }
        }
    }
}

impl Shape {
    pub(crate) fn schema(self) -> RefOr<Schema> {
        let mut object = of(Type::Object);
        for (name, kind, required, about) in self.fields {
            object = object.property(*name, kind.schema(about, *required));
            if *required {
                object = object.required(*name);
            }
        }
        if !self.open {
            object = object.additional_properties(Some(utoipa::openapi::schema::AdditionalProperties::<
                Schema,
            >::FreeForm(false)));
        }
        object.into()
    }
}
